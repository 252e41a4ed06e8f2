"""Denoising diffusion implicit models."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.parameters import Range
from fairlead.samplers.base import Model, Sampler, ancestral, register, transfer
from fairlead.schedules import Level


@register("ddim")
@dataclass(frozen=True)
class DDIM(Sampler):
    r"""Moves to the clean estimate and adds its noise back, a share of it drawn anew.

    .. math::
        x_t = \alpha_t D + \sqrt{\sigma_t^2 - u^2} \, \epsilon + u \, n, \qquad
        u^2 = \eta^2 \, \frac{\sigma_t^2}{\sigma_s^2}
              \Bigl(\sigma_s^2 - \frac{\alpha_s^2}{\alpha_t^2} \sigma_t^2\Bigr)

    * Order 1, one evaluation a step.
    * ``eta=0`` is Euler's method for ``dx = D dalpha + eps dsigma``; ``eta=1`` is DDPM with the
      small variance.

    Args:
        eta: Share of the ancestral noise in [0, 1].

    Raises:
        ValueError: A parameter is out of range.

    Source:
        Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 12 and 16; here for any schedule.
    """

    eta: Annotated[float, Range(0, 1)] = 0.0

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        down, up = ancestral(s, t, self.eta)
        x = transfer(x, model(x, s), s, down)
        return x + up * model.noise(x) if up else x
