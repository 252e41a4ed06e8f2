"""Autoguidance: guiding a model with a bad version of itself."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from fairlead.guidance.algebra import ALL_DOMAINS, Scale, Term, less_one, register
from fairlead.guidance.branch import Branch


@register("autoguidance", ids=("S036", "XT5", "S091"), nfe=1, neutral="1.0")
@dataclass(frozen=True)
class Autoguidance(Term):
    r"""Pushes away from a weaker model under the same condition.

    .. math:: D = D_0(x, c) + w (D_1(x, c) - D_0(x, c))

    The weak model ``D_0`` should be a smaller or less trained version of ``D_1``, degraded in the
    same way. It is evaluated at the same ``x``, signal and noise level. ZeroMMT, which translates
    with an image, takes the text model that it was made from, without the image, and ``w = 1.25``.

    * Cost: 1 NFE of the weak model beside the conditional one.
    * Neutral: ``w = 1`` evaluates the main model alone.
    * With CFG: ``cfg(1 + (1 - a)(w - 1)) + autoguidance(1 + a (w - 1))`` splits one
      extrapolation ``w`` by the share ``a``.

    Args:
        w: Guidance scale; 1.7 to 2.5 in the paper; one number, or one a sample.
        model: Name of the weak model among the denoiser's own or ``fl.sample(models=...)``.

    Raises:
        ValueError: ``w`` is NaN or infinite; there is no model of that name.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Autoguidance(2.0))
        'autoguidance(2.0)'

    Source:
        Karras, Aittala, Kynkaanniemi, Lehtinen, Aila, Laine (2024), arXiv:2406.02507; Futeral
        et al. (2024), arXiv:2407.13579.
    """

    domains: ClassVar[frozenset[str]] = ALL_DOMAINS

    w: Scale
    model: str = "weak"

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return less_one(self.w)

    @cached_property
    def negative(self) -> Branch:
        return Branch(self.model, model=self.model)
