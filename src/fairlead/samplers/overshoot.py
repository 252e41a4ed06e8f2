"""The stochastic sampler of distilled models: two steps forward, one step back."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairlead.samplers.base import Model, Sampler, added_variance, register, transfer
from fairlead.schedules import Level


@register("overshoot", ids=("S088",))
@dataclass(frozen=True)
class Overshoot(Sampler):
    r"""A deterministic step over two levels, and noise back up to the first of them.

    From level ``s`` over ``t`` to the one after it, ``u``:

    .. math::
        x_u &= \alpha_u D + \sigma_u \epsilon, \qquad
        x_t = \frac{\alpha_t}{\alpha_u} x_u
              + \sqrt{\sigma_t^2 - \frac{\alpha_t^2}{\alpha_u^2} \sigma_u^2} \; n

    The step to the last level has no ``u``: it is ``ddim``'s. What is noised back has the
    marginal of level ``t`` wherever ``x_u`` has that of ``u``. For models that were distilled to
    few steps, with which it gives sharper samples than ``ddim``.

    * Order 1, one evaluation a step.

    Example:
        >>> import fairlead as fl
        >>> p = fl.exact.GaussianMixture([[1.0]], 0.1)
        >>> fl.sample(p.denoiser(fl.schedules.VP()), n=2, sampler="overshoot", steps=8).x.shape
        torch.Size([2, 1])

    Source:
        Ho et al. (2022), arXiv:2210.02303; Meng et al. (2022), arXiv:2210.03142.
    """

    solver: ClassVar[bool] = False  # it asks for the levels to come

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        after = model.levels[model.step + 2 :]
        p = model(x, s)
        if not after or t.sigma == 0:
            return transfer(x, p, s, t)
        u = after[0]
        noise = math.sqrt(added_variance(t, u)) * model.noise(x)
        return t.alpha / u.alpha * transfer(x, p, s, u) + noise
