"""Adaptive Guidance: stop paying for the null branch once it has become parallel."""

import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.guidance.algebra import (
    CONTINUOUS,
    Context,
    Policy,
    Predictions,
    Range,
    inner,
    norm,
    register,
)
from fairlead.guidance.context import Weight
from fairlead.guidance.spaces import Space, check_space
from fairlead.parameters import choose
from fairlead.prediction import from_x0


@register("adaptive", ids=("S014",), neutral="1.5")
@dataclass(frozen=True)
class AdaptiveGuidance(Policy):
    r"""Turns the terms before it off, for good, once both predictions point the same way.

    .. math:: \gamma_i = \frac{\langle \epsilon_c, \epsilon_u \rangle}
                              {\lVert \epsilon_c \rVert \, \lVert \epsilon_u \rVert}
              \ge \bar\gamma \implies w = 1 \text{ from step } i + 1 \text{ on}

    * Space: eps unless ``space`` says otherwise, and thresholds do not carry over; per sample, over
      all dimensions but the first. The null is any branch of another condition state that is
      evaluated, not what another policy puts in its place; with several the least cosine counts.
    * Cost: saves the null branch after the switch: ``2 (k + 1) + (N - k - 1)`` NFE if step ``k``
      is the first to reach the threshold. A switched sample's rows are not evaluated.
    * Neutral: ``threshold > 1``.

    Args:
        threshold: ``gamma-bar``; 0.991 to 0.996 in the paper.
        guard: Share of the steps, in [0, 1], in which nothing is switched. The paper has none.
            Runs that start at very low signal need one (0.45 on the exact testbed): there both
            predictions are nearly ``x``, and the rule fires at once; this warns.
        scope: ``sample``, each sample for itself; or ``batch``, all together once all have
            reached it.
        restart: Whether the switch makes multistep solvers drop their history, which has a
            jump there; needs ``scope="batch"``, since the history is the batch's.
        space: Space of the cosine.

    Raises:
        ValueError: A parameter is out of range; ``restart`` without ``scope="batch"``.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.AdaptiveGuidance(guard=0.45))
        'cfg(7.5) | adaptive(guard=0.45)'

    Source:
        Castillo, Kohler, et al. (2023), arXiv:2312.12487.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS

    threshold: Annotated[float, Range(-float("inf"), float("inf"), closed="neither")] = 0.991
    guard: Annotated[float, Range(0, 1)] = 0.0
    scope: Literal["sample", "batch"] = "sample"
    restart: bool = False
    space: Space = "epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("adaptive", "scope", self.scope, ("sample", "batch"))
        check_space("adaptive", self.space)
        if self.restart and self.scope != "batch":
            raise ValueError("adaptive: restart needs scope='batch', got scope='sample'")

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        off: Tensor | None = ctx.recall()
        if off is None:
            return weight
        if bool(off.all()):
            if self.restart and not ctx.recall(False, "dropped"):
                ctx.run.drop_history()
                ctx.remember(True, "dropped")
            return 0.0
        if self.scope == "batch" or not bool(off.any()):
            return weight
        on = (~off).to(torch.float32 if ctx.x is None else ctx.x.dtype)
        return weight * on.reshape(-1, *[1] * (ctx.ndim - 1))

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        others = [b for b in predictions if not b.whole and b in ctx.evaluated]
        at_hand = predictions.base_branch in predictions.values_by_branch  # not at w = 0
        if not others or not at_hand or ctx.fraction < self.guard:
            return
        base = self._measured(predictions.base, ctx)
        cosine = torch.stack(
            [_cosine(base, self._measured(predictions[b], ctx)) for b in others]
        ).amin(0)
        before = ctx.recall()
        off = cosine >= self.threshold
        if before is None and ctx.step == 0 and self.threshold > 0 and bool(off.any()):
            warnings.warn(
                "adaptive: guidance is switched off at the first step, where the sample is almost "
                "all noise and both predictions look alike; guard=0.45 waits",
                stacklevel=2,
            )
        ctx.remember(off if before is None else off | before)

    def _measured(self, x0: Tensor, ctx: Context) -> Tensor:
        if self.space == "sample":
            return x0
        if ctx.x is None:
            raise ValueError("combine: this guide needs the noisy sample; give x, t and schedule")
        return from_x0(x0, ctx.x, ctx.alpha, ctx.sigma, self.space)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine per sample, `(B,)`."""
    return (inner(a, b) / (norm(a) * norm(b)).clamp(min=torch.finfo(a.dtype).tiny)).flatten()
