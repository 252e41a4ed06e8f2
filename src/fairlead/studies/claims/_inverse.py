"""Linear measurements of Gaussian mixtures, whose posterior is a mixture again."""

from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.energy import Linear
from fairlead.exact import GaussianMixture, energy_distance
from fairlead.guidance.algebra import Guide
from fairlead.metrics import Estimate
from fairlead.schedules import VP, NoiseSchedule

N = 1500
A = torch.tensor([[1.0, 0.7]], dtype=torch.float64)
Y = torch.tensor([1.0], dtype=torch.float64)
NOISE = 0.5
SETTING = (
    "2-D mixture, means (2, 0), (-1, 1.5), (0, -2), std 0.6, exact denoiser; one measurement "
    "x_1 + 0.7 x_2 = 1 with noise 0.5; VP, 50 steps of DDIM, eta = 1, 1500 samples"
)


def mixture() -> GaussianMixture:
    """Three components, one class."""
    return GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], 0.36)


def posterior() -> GaussianMixture:
    """What samples should follow."""
    return mixture().given(A, Y, NOISE)


def energy(form: str = "gaussian") -> Linear:
    """Minus the log-likelihood of the measurement, or the length of the residual."""
    return Linear(A, Y, NOISE, form=form)


def sample(
    guide: Guide | str,
    *,
    schedule: NoiseSchedule | None = None,
    n: int = N,
    steps: int = 50,
    **options: Any,
) -> Tensor:
    """Samples `(n, 2)` in float64."""
    return fl.sample(
        mixture().denoiser(schedule or VP()),
        guide=guide,
        n=n,
        steps=steps,
        **{"sampler": "ddim(eta=1.0)", "dtype": torch.float64, "record": False, **options},
    ).x


def distance(x: Tensor) -> Estimate:
    """Energy distance to as many samples of the posterior."""
    truth = posterior().sample(len(x), generator=torch.Generator().manual_seed(1))
    return energy_distance(x, truth, resamples=100)


def width(x: Tensor) -> float:
    """Standard deviation of what is measured; 0.5 or so under the posterior."""
    return (x @ A.T).std().item()
