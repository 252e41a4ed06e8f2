"""Heun's method with churn."""

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.parameters import FINITE, Range
from fairlead.samplers.base import Model, Sampler, noise_of, register, transfer
from fairlead.schedules import Level


@register("heun")
@dataclass(frozen=True)
class Heun(Sampler):
    r"""The trapezoid rule for ``dx = D dalpha + eps dsigma``, after an optional rise in noise.

    Churn first raises ``r = sigma/alpha`` by ``1 + g``, ``g = min(churn/steps, sqrt 2 - 1)``, with
    fresh noise. Then, with ``D'`` and ``eps'`` predicted where an Euler step lands,

    .. math::
        x_t = x + (\alpha_t - \alpha_s) \frac{D + D'}{2}
                + (\sigma_t - \sigma_s) \frac{\epsilon + \epsilon'}{2} .

    With two ends the sample moves to the mean of ``denoise``; all noise, and the change of
    ``alpha_s D + sigma_s eps`` between the stages, come from ``renoise``.

    * Order 2 (without churn), two evaluations a step, one on the last step to ``sigma = 0``.
    * Where ``alpha = 1`` it is the method of the paper; on straight paths, Heun's method along
      the flow velocity.

    Args:
        churn: Noise over the whole trajectory, >= 0; 0 is deterministic. Raised levels may lie
            above the first level of the grid; ``churn_max`` prevents that.
        churn_min: Lowest ``sigma/alpha`` that is churned.
        churn_max: Highest ``sigma/alpha`` that is churned.
        churn_noise: Standard deviation of the fresh noise, about 1.

    Raises:
        ValueError: A parameter is out of range.

    Source:
        Karras, Aittala, Aila, Laine (2022), arXiv:2206.00364, algorithm 2.
    """

    order = 2
    evaluations = 2

    churn: Annotated[float, Range(0, math.inf, closed="left")] = 0.0
    churn_min: Annotated[float, Range(0, math.inf)] = 0.0
    churn_max: Annotated[float, Range(0, math.inf)] = math.inf
    churn_noise: Annotated[float, FINITE] = 1.0

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        x, s = self._raise(model, x, s)
        p = model(x, s)
        moved = transfer(x, p, s, t)
        if t.sigma == 0:
            return moved
        p2 = model(moved, t)
        eps, eps2 = noise_of(x, p.renoise, s), noise_of(moved, p2.renoise, t)
        x = t.alpha * (p.denoise + p2.denoise) / 2 + t.sigma * (eps + eps2) / 2
        return x + s.alpha * (p.renoise - p2.renoise) / 2 + s.sigma * (eps - eps2) / 2

    def _raise(self, model: Model, x: Tensor, s: Level) -> tuple[Tensor, Level]:
        if not self.churn or not s.alpha:  # where alpha = 0 there is no signal left to noise
            return x, s
        ratio = s.sigma / s.alpha
        if not self.churn_min <= ratio <= self.churn_max:
            return x, s
        g = min(self.churn / model.steps, math.sqrt(2) - 1)
        raised = model.schedule.level_at(-2 * math.log((1 + g) * ratio))
        added = math.sqrt((raised.sigma / raised.alpha) ** 2 - ratio**2)
        y = x / s.alpha + added * self.churn_noise * model.noise(x)
        return raised.alpha * y, raised
