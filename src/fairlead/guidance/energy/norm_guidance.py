"""Norm-based guidance: CFG plus a classifier gradient of a fixed share of the score."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Difference, Predictions, norm, register
from fairlead.guidance.branch import COND, NULL, Branch
from fairlead.guidance.energy.term import EnergyLike, GradientTerm, score_shift
from fairlead.parameters import FINITE, Range


@register("norm_guidance", ids=("S079",), nfe=1, neutral="'classifier', 0.0")
@dataclass(frozen=True)
class NormGuidance(GradientTerm):
    r"""Classifier-free guidance on the condition, and a classifier gradient as long as wanted.

    .. math::
        s_w = s_u + w (s_c - s_u), \qquad
        s = s_w + \rho \, \frac{\lVert s_w \rVert}{\lVert g \rVert} \, g, \qquad
        g = \nabla_x \log p(y \mid x)

    The classifier's scale drops out, and its share does not fade towards clean data: stop it with
    ``interval`` where it distorts the last steps. Norms are per sample over all dimensions but
    the first, in score space.

    * Cost: 1 NFE where ``w`` is not 1; one gradient of the energy, and for a clean one a backward
      through the network.
    * Neutral: ``rho = 0`` with ``w = 1``. A gradient of length 0 adds nothing.
    * Defaults by family: ``rho`` 0.3, ``w`` 2 (speech).

    Args:
        energy: Minus a log-probability; a name, an energy or a function.
        rho: Length of the classifier's part in units of the score's, >= 0.
        w: Scale of classifier-free guidance.
        mask: Name of a mask, 1 where norms are taken, such as where a batch is not padded; empty
            for everywhere.

    Raises:
        ValueError: A parameter is out of range; there is no such mask.

    Example:
        >>> import fairlead as fl
        >>> str(fl.NormGuidance("classifier", 0.2, w=2.0))
        "norm_guidance('classifier', rho=0.2, w=2.0)"

    Source:
        Kim, Kim, Yoon (2022), Guided-TTS 2, arXiv:2205.15370.
    """

    wants: ClassVar[str] = "any"

    energy: EnergyLike
    rho: Annotated[float, Range(0, math.inf, closed="left")] = 0.3
    w: Annotated[float, FINITE] = 1.0
    mask: str = ""

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the masks that it needs."""
        return (self.mask,) if self.mask else ()

    @cached_property
    def strength(self) -> float:
        return 1.0 if self.rho else 0.0

    @property
    def apart(self) -> bool:
        return False

    @property
    def differences(self) -> tuple[Difference, ...]:
        return ((self.w - 1, COND, NULL),)

    def differences_at(self, ctx: Context) -> tuple[Difference, ...]:
        return self.differences

    def differentiates(self, ctx: Context) -> bool:
        return not ctx.run.energy(self.name, self.energies[0]).noisy

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        assert ctx.x is not None
        guided = predictions.base
        for weight, positive, negative in ctx.plan.terms[ctx.place]:
            guided = guided + weight * (predictions[positive] - predictions[negative])
        score = (ctx.alpha * guided - ctx.x) / ctx.sigma**2
        if self.differentiates(ctx):
            g = ctx.pull(branch, self.log_f(predictions[branch], ctx)[1])
        else:
            g = self.log_f(ctx.x.to(guided.dtype), ctx)[1]
        counts = ctx.run.masks[self.mask] if self.mask else 1.0
        length = norm(counts * g)
        tiny = torch.finfo(g.dtype).tiny
        g = torch.where(length > 0, g / length.clamp(min=tiny), 0.0)
        return score_shift(self.rho * norm(counts * score) * g, ctx)
