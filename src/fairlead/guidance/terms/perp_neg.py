"""Perp-Neg: negatives that cannot cancel the condition."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from fairlead.guidance.algebra import (
    Context,
    Gains,
    Place,
    Predictions,
    Scale,
    Term,
    project,
    register,
)
from fairlead.guidance.branch import NULL, Branch


@register("perp_neg", ids=("XC6",), nfe=2, neutral="0.0")
@dataclass(frozen=True)
class PerpNeg(Term):
    r"""Pushes away from a negative condition, at right angles to the condition.

    With ``d = D_c - D_u`` and ``d_k = D_k - D_u`` for a negative condition ``c_k``:

    .. math:: D = D_\mathrm{rest} - s \, \Bigl( d_k - \frac{\langle d_k, d \rangle}
              {\lVert d \rVert^2} \, d \Bigr)

    The paper's ``D_u + w (d + sum_k b_k perp(d_k))`` is ``cfg(w)`` and one such term a negative
    with ``s = -w b_k``. Only differences from the null prediction are used, so the result is
    the same in x0, eps, v or u space. Inner products are per sample, over all dimensions but the
    first; in one dimension every ``d_k`` is parallel to ``d``.

    * Cost: 2 NFE beside the conditional one, of which ``cfg`` shares the null.
    * Neutral: ``s = 0``. What lies along ``d`` stays that of the rest of the guide.
    * Defaults by family: ``s`` 1 to 1.5 times the ``w`` of CFG (Stable Diffusion).

    Args:
        s: Weight, one number or one a sample; below 0 it pulls towards a further condition.
        against: Condition state that is pushed away from, given to
            ``fl.sample(negative=..., states=...)``.

    Raises:
        ValueError: ``s`` is NaN or infinite.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) + fl.PerpNeg(7.5))
        'cfg(7.5) + perp_neg(7.5)'

    Source:
        Armandpour, Sadeghian, Zheng, Sadeghian, Zhou (2023), arXiv:2304.04968.
    """

    affine: ClassVar[bool] = False

    s: Scale
    against: str = "negative"

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.s

    @property
    def positive(self) -> Branch:
        return NULL

    @cached_property
    def negative(self) -> Branch:
        return Branch(self.against, state=self.against)

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        super().plan(ctx, gains, gain, place)
        if place in ctx.plan.terms:
            ctx.plan.look_at(ctx.plan.base)

    def direction(self, positive: Branch, negative: Branch, predictions: Predictions) -> Tensor:
        values = predictions.values_by_branch
        away = values[positive] - values[negative]
        return away - project(away, onto=predictions.base - values[positive])
