"""Euler's method on the probability-flow ODE, and with ancestral noise."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.parameters import Range
from fairlead.samplers.base import Model, Sampler, ancestral, register, transfer
from fairlead.schedules import Level


@register("euler")
@dataclass(frozen=True)
class Euler(Sampler):
    r"""Euler's method for ``dx = D dalpha + eps dsigma``.

    .. math:: x_t = x + (\alpha_t - \alpha_s) D + (\sigma_t - \sigma_s) \epsilon
                  = \alpha_t D + \sigma_t \epsilon

    * Order 1, one evaluation a step. The same as DDIM at ``eta=0``, on every schedule; on
      straight paths it is the usual Euler step along the flow velocity ``eps - D``.

    Source:
        Karras, Aittala, Aila, Laine (2022), arXiv:2206.00364.
    """

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        return transfer(x, model(x, s), s, t)


@register("euler_ancestral")
@dataclass(frozen=True)
class EulerAncestral(Sampler):
    r"""Euler down to less noise than asked for, then fresh noise up to the level.

    In ``y = x / alpha`` and ``r = sigma / alpha``:

    .. math::
        y_t = D + r_\downarrow \epsilon + r_\uparrow n, \qquad
        r_\uparrow^2 = \eta^2 r_t^2 \, \frac{r_s^2 - r_t^2}{r_s^2}, \quad
        r_\downarrow^2 = r_t^2 - r_\uparrow^2 .

    * Order 1, one evaluation a step. Times ``alpha_t`` this is DDIM with the same ``eta``; other
      libraries know it under this name and with ``eta=1``.

    Args:
        eta: Share of the ancestral noise in [0, 1]; 0 is ``euler``.

    Raises:
        ValueError: A parameter is out of range.

    Source:
        The ancestral step of Song et al. (2021), arXiv:2011.13456, as k-diffusion names it.
    """

    eta: Annotated[float, Range(0, 1)] = 1.0

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        down, up = ancestral(s, t, self.eta)
        x = transfer(x, model(x, s), s, down)
        return x + up * model.noise(x) if up else x
