"""CFG-Zero*."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import (
    Context,
    Predictions,
    Range,
    Rule,
    opposed,
    project,
    register,
)
from fairlead.guidance.spaces import Space, check_space, in_space


@register("zero_star", ids=("XC2",))
@dataclass(frozen=True)
class CFGZeroStar(Rule):
    r"""Scales the null velocity to fit the conditional one, and stands still at first.

    With velocities ``u_c`` and ``u_n``, where ``n`` is what the terms before the rule push away
    from (the null prediction after ``cfg(w)``) and ``w - 1`` their signed weight:

    .. math::
        u = s u_n + w (u_c - s u_n), \qquad
        s = \frac{\langle u_c, u_n \rangle}{\lVert u_n \rVert^2},

    and ``u = 0`` in the first ``zero_steps`` steps: there ``x / (alpha + sigma)``, on straight
    paths the state itself, does not change.

    * Space: velocity unless ``space`` says otherwise; the coefficients add up to
      ``w + (1 - w) s``, so other spaces give other rules. Per sample, over all dimensions but
      the first.
    * Cost: 0 NFE. A step that stands still costs what any other does: the algebra always
      evaluates the base, and a rule stands behind the terms that it could spare.
    * Neutral: none; ``w = 1`` is the conditional model, also in the first steps. The length and
      the sign of ``u_n`` do not matter, and ``u_n`` parallel to ``u_c`` gives ``u_c``.
    * Defaults by family: 1 step of about 25 (SD3, Flux, Lumina), 1 or 2 for video (Wan 2.1).

    Args:
        zero_steps: Number of first steps of zero velocity; 0 leaves the scale alone.
        space: Space in which predictions are scaled: ``flow_prediction``, or ``sample``,
            ``epsilon``, ``v_prediction``. The zero is one of velocity in any case.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.CFGZeroStar())
        'cfg(4.0) | zero_star()'

    Source:
        Fan, Zheng, Yeh, Liu (2025), arXiv:2503.18886.
    """

    zero_steps: Annotated[int, Range(0, inf, closed="left")] = 1
    space: Space = "flow_prediction"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space("zero_star", self.space)

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        base, update, back = in_space(self.space, predictions.base, update, ctx)
        if ctx.step < self.zero_steps:
            if ctx.x is None:
                raise ValueError("combine: this guide needs the noisy sample; give x, t, schedule")
            return ctx.x / (ctx.alpha + ctx.sigma) - predictions.base
        null, weight = opposed(base, update, ctx)
        return back(update + weight * (null - project(base, onto=null)))
