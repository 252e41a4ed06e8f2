"""Steps that stand still."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, ClassVar

from torch import Tensor

from fairlead.guidance.algebra import CONTINUOUS, Context, Predictions, Range, Rule, register


@register("zero_init", ids=("XC2",), neutral="0")
@dataclass(frozen=True)
class ZeroInit(Rule):
    r"""Stands still in the first steps, with guidance or without.

    In the first ``steps`` steps the velocity is 0: ``x / (alpha + sigma)``, on straight paths the
    state itself, does not change. It is the part of ``zero_star`` that serves a guidance-distilled
    model, which has no null: ``none | zero_init(1)``.

    * Space: velocity; the clean estimate becomes ``x / (alpha + sigma)``.
    * Cost: 0 NFE; a step that stands still costs what any other does.
    * Neutral: ``steps = 0``.
    * Defaults by family: 1 step of about 25.

    Args:
        steps: Number of first steps that stand still.

    Raises:
        ValueError: ``steps`` is negative.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.ZeroInit(1))
        'cfg(4.0) | zero_init(1)'

    Source:
        Fan, Zheng, Yeh, Liu (2025), arXiv:2503.18886.
    """

    alone: ClassVar[bool] = True
    domains: ClassVar[frozenset[str]] = CONTINUOUS

    steps: Annotated[int, Range(0, inf, closed="left")]

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if ctx.step >= self.steps:
            return update
        if ctx.x is None:
            raise ValueError("combine: this guide needs the noisy sample; give x, t, schedule")
        return ctx.x / (ctx.alpha + ctx.sigma) - predictions.base
