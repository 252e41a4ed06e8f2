"""Images of independent Gaussian pixels, as in the testbed of guidance rescale."""

import math

import torch
from torch import Tensor

import fairlead as fl
from fairlead.condition import Condition
from fairlead.metrics import Estimate, mean_interval
from fairlead.sampling import Result
from fairlead.schedules import Level, NoiseSchedule


def waves() -> Tensor:
    """`0.6 sin(2 pi X) cos(pi Y)` on 8x8 pixels, `X` and `Y` from 0 to 1."""
    line = torch.linspace(0, 1, 8, dtype=torch.float64)
    return 0.6 * torch.outer((math.pi * line).cos(), (2 * math.pi * line).sin())


class Pixels(fl.Denoiser):
    """`N(0, 0.3 I)` without label and `N(mean, 0.15 I)` with label 0, exactly.

    Args:
        mean: Mean image of the class, `(H, W)`.
        schedule: Noise schedule.
    """

    def __init__(self, mean: Tensor, schedule: NoiseSchedule) -> None:
        self.mean = mean
        shape = (1, *mean.shape)
        super().__init__(lambda x, t: x, schedule, "sample", null={"label": -1}, shape=shape)

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        own = (condition["label"] == 0).reshape(-1, 1, 1, 1)
        mean = torch.where(own, self.mean, 0.0).to(x)
        variance = torch.where(own, 0.15, 0.3).to(x)
        gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)

    def draw(self, guide: str, steps: int, n: int, sampler: str = "ddim") -> Result:
        """Samples of the class, in float64."""
        label = {"label": torch.zeros(n, dtype=torch.long)}
        return fl.sample(
            self,
            label,
            guide=guide,
            sampler=sampler,
            steps=steps,
            dtype=torch.float64,
            record=False,
        )


def burnt(x: Tensor) -> Estimate:
    """Share of pixels at or beyond 0.99 of the range."""
    return mean_interval((x.abs() >= 0.99).double().flatten(1).mean(1))


def deviation(x: Tensor) -> Estimate:
    """Mean over samples of the standard deviation of the pixels, with divisor H W."""
    return mean_interval(x.flatten(1).std(1, correction=0))


def correlation(x: Tensor, image: Tensor) -> Estimate:
    """Mean over samples of the correlation with an image."""
    pairs = torch.stack([x.flatten(1), image.flatten().expand(len(x), -1)])
    a, b = pairs - pairs.mean(2, keepdim=True)
    return mean_interval((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)))
