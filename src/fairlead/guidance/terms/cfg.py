"""Classifier-free guidance."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from fairlead.guidance.algebra import ALL_DOMAINS, Scale, Term, less_one, register
from fairlead.guidance.branch import NULL, Branch

TOKENS = ("XD1", "S011", "S037", "S043", "S074", "S126")
"""Models that write token by token."""

IDS = ("S006", "S031", "S058", "S065", "XC7", *TOKENS)


@register("cfg", ids=IDS, nfe=1, neutral="1.0")
@dataclass(frozen=True)
class CFG(Term):
    r"""Extrapolates from the unconditional towards the conditional prediction.

    .. math:: D = D_u + w (D_c - D_u) = D_c + (w - 1)(D_c - D_u)

    The coefficients add up to 1, so the result is the same in x0, eps, v or u space. With a
    negative condition ``c-`` the prediction for it stands in place of ``D_u``; where that holds a
    negative text and a negative style image this is style-based CFG (StyleStudio). Where an
    adapter makes the condition, null is what it makes of zeros (MiniGPT-5, ``nulls.mapped``).

    For models that write token by token ``D`` are log-probabilities, and the null is the last
    token of the prompt (stay on topic, 1.5), the prompt without its image (captions, 1 to 3),
    zeros behind the text encoder (AudioGen, 3; codec models of speech), padding in place of the
    text before the same scene (Make-A-Scene), or the prompt without a list of the objects in the
    image (MARINE, 0.7, between both).

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
        Ho, Salimans (2022), arXiv:2207.12598, whose scale is ``w - 1``; tokens: Sanchez et al.
        (2023), arXiv:2306.17806; Kornblith et al. (2023), arXiv:2307.16686; Kreuk et al. (2022),
        arXiv:2209.15352; arXiv:2412.01100; Gafni et al. (2022), arXiv:2203.13131; arXiv:2402.08680;
        adapters: Zheng, He, Wang (2023), arXiv:2310.02239.
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
