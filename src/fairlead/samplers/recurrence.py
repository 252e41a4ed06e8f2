"""Recurrence: each step several times, with the noise of the step put back in between."""

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.parameters import Range
from fairlead.samplers.base import Model, added_variance, register
from fairlead.samplers.wrapper import Wrapper
from fairlead.schedules import Level


@register("recurrence", ids=("S128", "XP2"))
@dataclass(frozen=True)
class Recurrence(Wrapper):
    r"""Repeats each step of another sampler ("time travel"), so that guidance can settle.

    After every repetition but the last the sample is noised back from ``t`` to ``s``:

    .. math:: x_s = \frac{\alpha_s}{\alpha_t} x_t
              + \sqrt{\sigma_s^2 - \alpha_s^2 \sigma_t^2 / \alpha_t^2} \; n

    Without guidance the law of the samples stays the same as steps shrink.

    * Order: that of the repeated sampler; ``times`` its evaluations a step.

    Args:
        sampler: Text of the repeated sampler; one without memory between steps, such as
            ``ddim(eta=1.0)``, ``ddpm``, ``euler`` or ``heun``.
        times: How often each step is taken, >= 1; 1 is the repeated sampler.

    Raises:
        ValueError: A parameter is out of range, or the sampler keeps a memory between steps.

    Source:
        Bansal et al. (2023), arXiv:2302.07121; Yu et al. (2023), arXiv:2303.09833; Ye et al.
        (2024), arXiv:2409.15761; the renoising for any schedule is ours.
    """

    sampler: str = "ddim"
    times: Annotated[int, Range(1, math.inf, closed="left")] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times != int(self.times):
            raise ValueError(f"recurrence: times must be a whole number, got {self.times}")
        if self.inner.name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc", "dc"):
            raise ValueError(
                f"recurrence: sampler must keep no memory between steps, got {self.sampler!r}; "
                "did you mean 'ddim', 'ddpm', 'euler' or 'heun'?"
            )

    @property
    def order(self) -> int:
        return self.inner.order

    @property
    def evaluations(self) -> int:
        """`times` those of the sampler."""
        return self.times * self.inner.evaluations

    def walk(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`; the guide may move each repetition."""
        for left in reversed(range(self.times)):
            x = self.inner.walk(model, x, s, t)
            if left:
                x = s.alpha / t.alpha * x + math.sqrt(added_variance(s, t)) * model.noise(x)
        return x

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        return self.walk(model, x, s, t)
