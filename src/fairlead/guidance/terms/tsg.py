"""Time-step guidance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Context, Range, Scale, Term, less_one, register
from fairlead.guidance.branch import Branch, Perturbation


@dataclass(frozen=True)
class TimeNoise(Perturbation):
    """Adds scaled normal noise to the output of the module that embeds time."""

    s: float
    power: float

    def modules(self, denoiser: Denoiser) -> list[nn.Module]:
        if denoiser.time_embedding is None:
            raise ValueError(
                "tsg: the model does not say which module embeds time: give "
                "Denoiser(time_embedding='module')"
            )
        return [denoiser.module(denoiser.time_embedding)]

    def __call__(
        self, inputs: Mapping[str, Any], output: Tensor, rows: Sequence[int], ctx: Context
    ) -> Tensor:
        size: float = self.s * (1 - ctx.fraction) ** self.power
        return output + size * ctx.normal(output, "tsg", rows)


@register("tsg", ids=("S001",), nfe=1, neutral="1.0")
@dataclass(frozen=True)
class TSG(Term):
    r"""Guides away from the model under a perturbed time embedding; needs no condition.

    .. math:: \tilde e = e(t) + s \, t^a \, n, \quad n \sim N(0, I), \qquad
              D = \tilde D + w (D - \tilde D)

    ``t`` in (0, 1] is the share of the run that lies ahead, ``1 - i/N``: the normalised time on a
    trailing grid. The noise is drawn anew each step.

    * Cost: 1 NFE beside the conditional one.
    * Neutral: ``w = 1`` or ``s = 0``.

    Args:
        w: Guidance scale; one number, or one a sample.
        s: Size of the noise in units of the embedding, >= 0; of order 1, tuned per model.
        a: Exponent of the time, usually in [0, 1].

    Raises:
        ValueError: A parameter is out of range; the model names no time embedding.

    Example:
        >>> import fairlead as fl
        >>> str(fl.TSG(2.0, s=0.5))
        'tsg(2.0, s=0.5)'

    Source:
        Sadat, Kansy, Hilliges, Weber (2024), arXiv:2407.02687.
    """

    w: Scale
    s: Annotated[float, Range(0, float("inf"), closed="left")] = 1.0
    a: Annotated[float, Range(0, float("inf"), closed="left")] = 1.0

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return less_one(self.w) if self.s else 0.0

    @cached_property
    def negative(self) -> Branch:
        return Branch("tsg", perturbations=(TimeNoise(self.s, self.a),))
