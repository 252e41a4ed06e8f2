"""SINE: a model tuned on one image guides the model that it comes from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from fairlead.guidance.algebra import FINITE, Term, register
from fairlead.guidance.branch import COND, Branch


@register("sine", ids=("S051",), nfe=1, neutral="7.5, v=1.0")
@dataclass(frozen=True)
class SINE(Term):
    r"""Mixes the conditional prediction of a tuned model into that of its origin.

    .. math:: D = D_\mathrm{rest} + w (1 - v) (F_{c_F} - D_c)

    After ``cfg(w)`` of the same ``w`` this is the paper's
    ``D_u + w (v D_c + (1 - v) F - D_u)``: the tuned model ``F`` under its own source prompt, the
    null of the origin as base. It is active above a time ``K``, so pipe it through an interval:
    ``cfg(7.5) + (sine(7.5) | interval(0, 0.6))`` for ``K = 400`` of 1000. Several such
    terms are several guides.

    * Affine, so the same in every space.
    * Cost: 1 NFE of the tuned model beside the conditional one.
    * Neutral: ``v = 1``; also a tuned model equal to its origin.

    Args:
        w: Guidance scale of the CFG beside it; 7.5, in command-line examples 10.
        v: Share of the origin; 0.7 in the paper, 0.4 in command-line examples.
        model: Name of the tuned model among the denoiser's own or ``fl.sample(models=...)``.
        state: Condition state of the tuned model, its source prompt.

    Raises:
        ValueError: A parameter is NaN or infinite; there is no model or state of that name.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) + (fl.SINE(7.5, 0.4, model="weak") | fl.Interval(0.0, 0.6)))
        "cfg(7.5) + (sine(7.5, v=0.4, model='weak') | interval(0.0, 0.6))"

    Source:
        Zhang, Han, Ghosh, Metaxas, Ren (2022), arXiv:2212.04489.
    """

    w: Annotated[float, FINITE]
    v: Annotated[float, FINITE] = 0.7
    model: str = "tuned"
    state: str = "cond"

    @cached_property
    def strength(self) -> float:
        return self.w * (1 - self.v)

    @cached_property
    def positive(self) -> Branch:
        return Branch(self.model, state=self.state, model=self.model)

    @property
    def negative(self) -> Branch:
        return COND
