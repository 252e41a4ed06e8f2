"""Loss-guided diffusion: a smoothed energy through the network."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from torch import Tensor

from fairlead.guidance.algebra import Context, Scale, register
from fairlead.guidance.context import Weight
from fairlead.guidance.energy.term import EnergyLike
from fairlead.guidance.energy.training_free import TrainingFree, noise_share, step_factor
from fairlead.parameters import Range, choose


@register("lgd", ids=("S128",), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class LGD(TrainingFree):
    r"""Follows a Monte Carlo estimate of what the energy says about clean samples given ``x``.

    The clean sample given ``x`` is taken as normal around ``D`` with deviation
    ``gamma sqrt(1 - A)``, so that on the variance-preserving path

    .. math:: x_\mathrm{next} = \mathrm{step}(x, D) + \zeta \, \nabla_x \log \frac1n \sum_m
              \exp\bigl(-E(D(x) + \gamma \sqrt{1 - A} \, \delta_m)\bigr) .

    * Cost: 0 NFE; ``samples`` gradients of the energy and one backward through the network.
    * Neutral: ``zeta = 0``; ``gamma = 0`` is ``freedom`` at the same scale.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        zeta: Step size, one number or one a sample.
        gamma: Spread in units of ``sqrt(1 - A)``, >= 0; 1 suits data of unit variance.
        samples: Number ``n`` of draws, >= 1. The log of a mean is dominated by its largest
            term, so few draws of a sharp energy are noisy.
        form: ``paper``; or ``code``, that of TFG's comparison, which divides by ``n`` once more.
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.LGD("measurement", samples=8))
        "lgd('measurement', samples=8)"

    Source:
        Song, Zhang, Yin, Mardani, Liu, Kautz, Chen, Vahdat (2023), Loss-Guided Diffusion Models
        for Plug-and-Play Controllable Generation; as a corner of TFG, arXiv:2409.15761.
    """

    energy: EnergyLike
    zeta: Scale = 1.0
    gamma: Annotated[float, Range(0, math.inf, closed="left")] = 1.0
    samples: Annotated[int, Range(1, math.inf, closed="left")] = 4
    form: Literal["paper", "code"] = "paper"
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "form", self.form, ("paper", "code"))
        if self.samples != int(self.samples):
            raise ValueError(f"lgd: samples must be a whole number, got {self.samples}")

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.zeta

    def differentiates(self, ctx: Context) -> bool:
        return True

    def variance(self, value: Tensor, ctx: Context) -> Weight:
        return step_factor(ctx) / (self.samples if self.form == "code" else 1)

    def spread(self, ctx: Context) -> tuple[float, int]:
        return self.gamma * noise_share(ctx), self.samples
