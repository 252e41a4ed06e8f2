"""CFG++: guide the clean estimate, renoise without guidance."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

from torch import Tensor

from fairlead.guidance.algebra import Context, Gains, Place, Predictions, Range, Term, register
from fairlead.guidance.branch import NULL, Branch


@register("cfgpp", ids=("S002",), nfe=1)
@dataclass(frozen=True)
class CFGpp(Term):
    r"""Interpolates the clean estimate and adds back the noise of the null prediction.

    .. math:: D_\lambda = D_u + \lambda (D_c - D_u), \qquad
              x' = \alpha' D_\lambda + \sigma' \, \epsilon_u

    for a first-order step; higher orders follow from the sampler's use of both ends.

    * Effective ``w``: a first-order step is CFG with ``w = lam / (1 - r)``,
      ``r = (sigma'/alpha') / (sigma/alpha)``, so it grows with the number of steps.
    * Cost: 1 NFE beside the conditional one, also at ``lam = 1``.
    * Neutral: none; ``lam = 0`` is unconditional DDIM.

    Args:
        lam: Interpolation in [0, 1]; 0.6 matches ``w = 7.5`` on latent models, 1 is for distilled
            few-step models.
        k: Bridge to CFG: renoise with ``eps_u + k (eps_lam - eps_u)``; 0 is CFG++, 1 is CFG with
            ``w = lam``.
        against: Condition state that is pushed away from; see ``CFG``.

    Raises:
        ValueError: A parameter is out of range; two parts of a guide claim the renoise end.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFGpp(0.6))
        'cfgpp(0.6)'

    Source:
        Chung, Kim, Park, Nam, Ye (2024), arXiv:2406.08070.
    """

    claims_renoise: ClassVar[bool] = True

    lam: Annotated[float, Range(0, 1)]
    k: Annotated[float, Range(0, 1)] = 0.0
    against: str = "null"

    @cached_property
    def strength(self) -> float:
        return self.lam - 1

    @cached_property
    def negative(self) -> Branch:
        return NULL if self.against == "null" else Branch(self.against, state=self.against)

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        super().plan(ctx, gains, gain, place)
        # at lam = 1 the update is zero but the null still renoises, unless a schedule says off
        weight = self.weigh(1.0, ctx, gains, gain)
        if isinstance(weight, Tensor) or weight != 0.0:
            ctx.plan.renoise = self.seen(self.negative, ctx, gains)
            ctx.plan.look_at(ctx.plan.renoise)

    def renoise(self, predictions: Predictions, ctx: Context, denoise: Tensor) -> Tensor | None:
        if ctx.plan.renoise is None:
            return None
        null = predictions[ctx.plan.renoise]
        return null if self.k == 0 else null + self.k * (denoise - null)
