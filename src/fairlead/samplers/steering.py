"""Feynman-Kac steering."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fairlead.parameters import FINITE, Range, choose
from fairlead.prediction import Prediction
from fairlead.samplers.base import Model, register
from fairlead.samplers.particles import resampled, scored
from fairlead.samplers.wrapper import Held, Wrapper
from fairlead.schedules import Level

POTENTIALS = ("max", "difference", "sum", "plain")


@register("steering", ids=("XC10",))
@dataclass(frozen=True)
class Steering(Wrapper):
    r"""Draws particles anew by intermediate rewards; the reward needs no gradient.

    Samples under equal conditions are particles of one group. After chosen steps and at the last
    one, ``r`` is the reward of the clean estimate (at the last, of the sample). Each particle
    keeps a statistic ``q = 0`` and the product ``P = 1`` of its potentials:

    .. math::
        q' = \begin{cases} r & \text{difference, plain} \\ \max(q, r) & \text{max} \\
             q + r & \text{sum} \end{cases}, \qquad
        G = \begin{cases} e^{l (q' - q)} & \text{difference} \\ e^{l q'} & \text{else, at the last
             step } e^{l q'} / P \end{cases} .

    ``difference`` and ``plain`` aim at ``p(x) exp(l r(x))``; for ``max`` and ``sum`` the statistic
    of the whole path stands in place of ``r(x)``, which is another law.

    * Cost: none beside the sampler's own; ``k`` particles cost ``k`` samples. The estimate that a
      check looks at is the one that the next step starts from.
    * Order that of ``sampler``. One particle a group, or ``l = 0``, leaves its law as it is.
    * The sampler must add noise, else copies stay equal.

    Args:
        reward: Name of the reward in ``fl.sample(rewards=...)``.
        l: Strength: the reward's scale sets it; 10 and 2 in the official scripts.
        potential: ``max``, ``difference``, ``sum`` or ``plain``.
        every: Steps from check to check.
        start: First checked step, counted from 0.
        stop: Checks come no later, but for the one at the last step.
        adaptive: Keep the weights and draw only where the effective share falls below a half, and
            at the last step.
        sampler: Text of the sampler whose steps are steered.

    Raises:
        ValueError: A parameter is out of range; the reward is missing or returns another shape.

    Source:
        Singhal et al. (2025), arXiv:2501.06848; potentials and defaults as in the official code.
    """

    reward: str = "reward"
    l: Annotated[float, FINITE] = 10.0  # noqa: E741  the paper's letter
    potential: Literal["max", "difference", "sum", "plain"] = "max"
    every: Annotated[int, Range(1, math.inf, closed="left")] = 20
    start: Annotated[int, Range(0, math.inf, closed="left")] = 20
    stop: Annotated[float, Range(0, math.inf)] = math.inf
    adaptive: bool = False
    sampler: str = "ddpm"

    def __post_init__(self) -> None:
        choose("steering", "potential", self.potential, POTENTIALS)
        super().__post_init__()

    def check(self, model: Model) -> None:
        super().check(model)
        model.reward(self.reward)

    @property
    def order(self) -> int:
        """That of the sampler."""
        return self.inner.order

    @property
    def evaluations(self) -> int:
        """Those of the sampler."""
        return self.inner.evaluations

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        if self._due(model.step - 1):
            p = model(x, s)
            index = self._choose(model, p.denoise, last=False)
            x = x[index]
            p = Prediction(p.denoise[index], p.renoise[index])
            x = self.inner.step(Held(model, x, s, p), x, s, t)
        else:
            x = self.inner.step(model, x, s, t)
        return x[self._choose(model, x / t.alpha, last=True)] if t.sigma == 0 else x

    def _due(self, step: int) -> bool:
        return self.start <= step <= self.stop and (step - self.start) % self.every == 0

    def _choose(self, model: Model, x0: Tensor, last: bool) -> Tensor:
        r = scored(model, self.reward, x0)
        zeros = torch.zeros_like(r)
        q, path, weights = (model.carried.get(k, zeros) for k in ("statistic", "path", "weights"))
        now = {"max": torch.maximum(q, r), "sum": q + r}.get(self.potential, r)
        gain = self.l * (now - q if self.potential == "difference" else now)
        if last and self.potential != "difference":
            gain = gain - path
        gain = gain.nan_to_num(-math.inf).clamp(max=10 * math.log(10))  # weights in [0, 1e10]
        weights = weights + gain
        model.carried.update(statistic=now, path=path + gain, weights=weights)
        threshold = 0.5 if self.adaptive and not last else math.inf
        index, drawn = resampled(model, weights, threshold, "multinomial")
        model.take(index)
        model.carried["weights"] = model.carried["weights"].where(~drawn, 0.0)
        return index
