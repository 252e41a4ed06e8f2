"""Reflected diffusion on the unit cube."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fairlead.parameters import Range
from fairlead.reflection import reflect
from fairlead.samplers.base import Model, Sampler, register
from fairlead.schedules import Level


@register("reflected", ids=("S120",))
@dataclass(frozen=True)
class Reflected(Sampler):
    r"""Euler steps of the reverse SDE, folded back at the walls of ``[0, 1]``.

    For models trained under reflected noise: their clean estimate stands for the score,
    ``s = (D - x) / sigma^2``, and ``q = sigma_s^2 - sigma_t^2``.

    .. math::
        \text{SDE:} \quad x &\gets \mathrm{reflect}(x + q \, s + \sqrt{q} \, n), \\
        \text{corrector:} \quad x &\gets \mathrm{reflect}(x + h \, s + \sqrt{2h} \, n), \quad
            h = 2 \bigl( r \lVert n \rVert / \lVert s \rVert \bigr)^2, \\
        \text{ODE:} \quad x &\gets x + \tfrac{q}{2} \, s \, b(x), \quad
            b = \exp \frac{4 - 1 / (0.25 - (0.5 - x)^2)}{200} .

    The bump ``b`` vanishes at the walls. Samples never leave the cube, at any guidance scale, so
    nothing has to be clipped. The last step of the SDE adds no noise.

    * Order 1, one evaluation a step, one more for each corrector step. The paper integrates the
      ODE adaptively.
    * For schedules with ``alpha = 1``, such as ``EDM(0.01, 5.0, spacing="exponential")``: at
      ``sigma = 5`` the start is uniform on the cube.

    Args:
        ode: Follow the probability-flow ODE; it adds no noise and starts inside [0.01, 0.99].
        corrector: Langevin steps at each new level, >= 0.
        snr: ``r`` > 0.

    Raises:
        ValueError: A parameter is out of range; the schedule has ``alpha`` other than 1.

    Source:
        Lou, Ermon (2023), arXiv:2304.04740.
    """

    solver = False

    ode: bool = False
    corrector: Annotated[int, Range(0, math.inf, closed="left")] = 0
    snr: Annotated[float, Range(0, math.inf, closed="neither")] = 0.01

    @property
    def evaluations(self) -> int:
        """One, and one for each corrector step."""
        return 1 + self.corrector

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        if s.alpha != 1 or t.alpha != 1:
            raise ValueError(f"reflected: the schedule must have alpha = 1, got {s.alpha}")
        x = reflect(x)
        if self.ode and model.step == 0:
            x = x.clamp(0.01, 0.99)
        score = (model(x, s).denoise - x) / s.sigma**2
        q = s.sigma**2 - t.sigma**2
        if self.ode:
            # Euler may step over a wall that the exact flow never reaches
            return reflect(x + q / 2 * score * _bump(x))
        if t.sigma == 0:
            return reflect(x + q * score)
        x = reflect(x + q * score + math.sqrt(q) * model.noise(x))
        for _ in range(self.corrector):
            score = (model(x, t).denoise - x) / t.sigma**2
            noise = model.noise(x)
            # where the score vanishes, a step across the cube is as good as any longer one
            h = (2 * (self.snr * _norm(noise) / _norm(score)) ** 2).clamp(max=1.0)
            x = reflect(x + h * score + (2 * h).sqrt() * noise)
        return x


def _bump(x: Tensor) -> Tensor:
    gap = (0.25 - (0.5 - x) ** 2).clamp(min=1e-6)
    return ((4 - 1 / gap) / 200).exp()


def _norm(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return size.clamp(min=torch.finfo(x.dtype).tiny)
