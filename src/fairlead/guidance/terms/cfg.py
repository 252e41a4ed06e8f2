"""Classifier-free guidance."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from fairlead.guidance.algebra import ALL_DOMAINS, Scale, Term, less_one, register
from fairlead.guidance.branch import NULL, Branch


@register("cfg", ids=("S006", "S031", "S065", "XC7"), nfe=1, neutral="1.0")
@dataclass(frozen=True)
class CFG(Term):
    r"""Extrapolates from the unconditional towards the conditional prediction.

    .. math:: D = D_u + w (D_c - D_u) = D_c + (w - 1)(D_c - D_u)

    The coefficients add up to 1, so the result is the same in x0, eps, v or u space. With a
    negative condition ``c-`` the prediction for it stands in place of ``D_u``; where that holds a
    negative text and a negative style image this is style-based CFG (StyleStudio).

    * Cost: 1 NFE beside the conditional one; none where ``w = 1``, and at ``w = 0`` the null
      prediction alone is evaluated.
    * Neutral: ``w = 1`` is the conditional model to the bit.

    Args:
        w: Guidance scale: 0 unconditional, 1 conditional, usually 1.1 to 8; one number, or one
            a sample.
        against: Condition state that is pushed away from: ``null``, or a state given to
            ``fl.sample(negative=..., states=...)`` such as ``negative``.

    Raises:
        ValueError: ``w`` is NaN or infinite.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0))
        'cfg(4.0)'

    Source:
        Ho, Salimans (2022), arXiv:2207.12598, whose scale is ``w - 1``.
    """

    domains: ClassVar[frozenset[str]] = ALL_DOMAINS

    w: Scale
    against: str = "null"

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return less_one(self.w)

    @cached_property
    def negative(self) -> Branch:
        return NULL if self.against == "null" else Branch(self.against, state=self.against)
