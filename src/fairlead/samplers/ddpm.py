"""Ancestral sampling of the diffusion chain."""

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.parameters import Range, choose
from fairlead.samplers.base import Model, Sampler, added_variance, noise_of, register
from fairlead.schedules import Level


@register("ddpm")
@dataclass(frozen=True)
class DDPM(Sampler):
    r"""Draws from ``q(x_t | x_s, x0 = D)``, or with a wider variance.

    With ``e = 1 - exp(log_snr_s - log_snr_t)`` the mean is

    .. math::
        (1 - e) \frac{\alpha_t}{\alpha_s} x + e \, \alpha_t D
        = \alpha_t D + \frac{\alpha_s \sigma_t^2}{\alpha_t \sigma_s} \epsilon, \qquad
        \text{variance} = (e \sigma_t^2)^{1 - v} (e \sigma_s^2)^v .

    The last step, to ``sigma = 0``, adds no noise.

    * Order 1, one evaluation a step.

    Args:
        variance: ``small`` is the posterior's (``v = 0``), ``large`` the forward step's
            (``v = 1``, the beta of the chain); a number is ``v`` in [0, 1], the interpolation in
            log space.

    Raises:
        ValueError: The variance is neither a known name nor in [0, 1].

    Source:
        Ho, Jain, Abbeel (2020), arXiv:2006.11239; ``v``: Ho, Salimans (2022), arXiv:2207.12598.
    """

    variance: str | Annotated[float, Range(0, 1)] = "small"

    def __post_init__(self) -> None:
        if isinstance(self.variance, str):
            choose("ddpm", "variance", self.variance, ("small", "large"))
        else:
            super().__post_init__()

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        p = model(x, s)
        if t.sigma == 0:
            return t.alpha * p.denoise
        v = float({"small": 0, "large": 1}.get(str(self.variance), self.variance))
        e = added_variance(s, t) / s.sigma**2
        kept = s.alpha / t.alpha * t.sigma / s.sigma  # exp(lam_s - lam_t)
        mean = t.alpha * p.denoise + kept * t.sigma * noise_of(x, p.renoise, s)
        deviation = math.sqrt(e) * math.pow(t.sigma, 1 - v) * math.pow(s.sigma, v)
        return mean + deviation * model.noise(x)
