"""Dreamguider: step sizes from distances travelled, no backward through the network."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Scale, norm, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.term import EnergyLike, GradientTerm, ratio, signal
from fairlead.guidance.energy.training_free import noise_share
from fairlead.parameters import choose

FIRST = 1e-5
"""Distance that the first step is taken to have travelled."""


@register("dreamguider", ids=("S214",), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class Dreamguider(GradientTerm):
    r"""Descends the energy with step sizes that need no tuning.

    On the variance-preserving path (``a`` the one-step ratio of squared signal levels, ``A`` their
    product, ``S = sqrt(1 - A)``), with ``g_D`` the gradient of the energy at ``D`` and
    ``g_e = -(S / sqrt(A)) g_D`` that in the noise:

    .. math::
        x_\mathrm{next} &= \mathrm{step}(x, D) - c \sqrt{a_\mathrm{next}} \, S \, g_D
        + d \, \frac{1 - a}{\sqrt{a}} \, g_\epsilon, \\
        \gamma &= \frac{\max_i \lVert f_i - f_0 \rVert}{\sqrt{\sum_i \lVert g_i \rVert^2}},

    where ``c`` is ``gamma`` of the noise and ``d`` that of the clean estimate (distances over
    accumulated gradients, per sample; the first is ``1e-5 / ||g||``). The samples do not change
    when the energy is multiplied by a positive number. The paper's random augmentation of the
    energy's arguments is left to the energy.

    * Cost: 0 NFE; one gradient of the energy, two numbers and two tensors a sample.
    * Neutral: ``scale = 0``. Nothing is added where ``alpha = 0``.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        scale: Factor on both step sizes, one number or one a sample; the paper has 1.
        pairing: ``crossed``, as published: the number from the noise weighs the gradient at the
            clean estimate and the other way round; or ``own``.
        maximum: Distances that count: up to the ``current`` step, or of ``earlier`` steps alone
            as printed, then at least ``1e-5``.
        ratios: Whether ``a_next`` is that of one ``step``, or ``cumulative``, ``A_next``; the
            publication leaves it open.
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Dreamguider("measurement"))
        "dreamguider('measurement')"

    Source:
        Nair, Patel (2024), arXiv:2406.02549; published pseudo-code.
    """

    energy: EnergyLike
    scale: Scale = 1.0
    pairing: Literal["crossed", "own"] = "crossed"
    maximum: Literal["current", "earlier"] = "current"
    ratios: Literal["step", "cumulative"] = "step"
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "pairing", self.pairing, ("crossed", "own"))
        choose(self.name, "maximum", self.maximum, ("current", "earlier"))
        choose(self.name, "ratios", self.ratios, ("step", "cumulative"))

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.scale

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        clean = predictions[branch]
        at, to = signal(ctx.level), signal(ctx.target)
        if not at:
            return torch.zeros_like(clean)
        spread = noise_share(ctx)
        gradient = -self.log_f(clean, ctx)[1]
        in_noise = -(spread / at) * gradient
        c = self.estimate("noise", ctx.noise(clean), in_noise, ctx)
        d = self.estimate("clean", clean, gradient, ctx)
        if self.pairing == "own":
            c, d = d, c
        a = ratio(ctx.level, ctx.target)
        following = to**2 if self.ratios == "cumulative" else self.following(ctx)
        back = (1 - a) / (a**0.5 * at)
        factor: Tensor = c * following**0.5 + d * back
        return -spread * factor * gradient / to

    @staticmethod
    def following(ctx: Context) -> float:
        """The one-step ratio of the next step; 1 after the last."""
        levels, i = ctx.run.levels, ctx.run.step + 1
        return ratio(levels[i], levels[i + 1]) if 0 < i < len(levels) - 1 else 1.0

    def estimate(self, leaf: str, f: Tensor, g: Tensor, ctx: Context) -> Tensor:
        """The step size of one leaf; `0 / 0` is 0."""
        size = norm(g)
        start, travelled, total = ctx.recall(
            (f, torch.zeros_like(size), torch.zeros_like(size)), leaf
        )
        reached = torch.maximum(travelled, norm(f - start))
        total = total + size**2
        ctx.remember((start, reached, total), leaf)
        root = total.sqrt()
        if self.maximum == "earlier":
            distance = travelled.clamp(min=FIRST)
        else:
            distance = torch.where(reached == 0, torch.full_like(reached, FIRST), reached)
        return torch.where(root > 0, distance / root.clamp(min=torch.finfo(root.dtype).tiny), 0.0)
