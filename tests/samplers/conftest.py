"""A minimal driver: any function `D(x, level)` as a guided model, and Gaussian data."""

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from fairlead.samplers import Prediction, get
from fairlead.schedules import EDM, VP, DiscreteVP, RectifiedFlow

SCHEDULES = {
    "vp": VP(),
    "cosine": VP("cosine"),  # starts at alpha = 0
    "edm": EDM(),
    "rf": RectifiedFlow(),  # starts at alpha = 0
    "discrete": DiscreteVP.scaled_linear(),
    "ztsnr": DiscreteVP.scaled_linear(zero_terminal_snr=True),  # starts at alpha = 0
}


@dataclass
class Driven:
    """A model around `predict(x, level)` or `predict(x, level, gain)`, with noise per sample."""

    predict: object
    schedule: object
    steps: int
    seed: int = 0
    noiseless: bool = False
    takes_gain: bool = False
    levels: tuple = ()
    step: int = 0
    memory: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    draws: int = 0

    def __call__(self, x, level, *, gain=1.0):
        self.calls.append((level, gain))
        out = self.predict(x, level, gain) if self.takes_gain else self.predict(x, level)
        return out if isinstance(out, Prediction) else Prediction(out, out)

    def enter(self, x, level):
        return x

    def noise(self, x):
        self.draws += 1
        if self.noiseless:
            return torch.zeros_like(x)
        rows = []
        for i in range(len(x)):
            key = (self.seed * 1_000_003 + i) * 1_000_003 + self.draws
            generator = torch.Generator().manual_seed(key)
            rows.append(torch.randn(x.shape[1:], generator=generator, dtype=torch.float64))
        return torch.stack(rows).to(x.dtype)


def drive(sampler, predict, levels, x, schedule=None, *, between=None, whole=False, **options):
    """Walks down the levels; returns the sample, or with `whole` also the model."""
    model = Driven(predict, schedule, len(levels) - 1, **options)
    sampler = get(sampler)
    for i, (s, t) in enumerate(pairwise(levels)):
        model.step = i
        x = sampler.step(model, x, s, t)
        if between is not None:
            between(model, i)
    return (x, model) if whole else x


@dataclass
class Probed(Driven):
    """Row 0 sees no noise, row 1 starts one deviation off, row `1 + k` sees draw `k` alone."""

    def noise(self, x):
        self.draws += 1
        out = torch.zeros_like(x)
        out[1 + self.draws] = 1
        return out


def moments(sampler, predict, levels, start, mean, draws, schedule=None, **options):
    """Mean and variance that a sampler ends with: exact where the model is affine in `x`.

    The end sample is then affine in the start and in every draw, so one run with a row for each
    gives all its coefficients.
    """
    model = Probed(predict, schedule, len(levels) - 1, levels=tuple(levels), **options)
    x = mean.expand(2 + draws, *mean.shape).clone()
    x[1] += start
    sampler = get(sampler)
    for i, (s, t) in enumerate(pairwise(levels)):
        model.step = i
        x = sampler.step(model, x, s, t)
    assert model.draws <= draws
    return x[0], ((x[1:] - x[0]) ** 2).sum(0)


@dataclass
class Gaussian:
    """Data `N(mu, var)`, dimensions independent."""

    mu: torch.Tensor
    var: torch.Tensor

    def __call__(self, x, level):
        a, v = level.alpha, level.sigma**2
        return (a * self.var * x + v * self.mu) / (a**2 * self.var + v)

    def deviation(self, level):
        return (level.alpha**2 * self.var + level.sigma**2).sqrt()

    def at(self, z, level):
        """The exact ODE solution: the standardised sample `z` does not change."""
        return level.alpha * self.mu + self.deviation(level) * z


@pytest.fixture(scope="session")
def lab():
    gaussian = Gaussian(
        torch.tensor([1.5, -0.4, 0.3], dtype=torch.float64),
        torch.tensor([0.3, 0.01, 1.7], dtype=torch.float64),
    )
    z = torch.tensor([[0.7, -1.1, 0.4], [-0.3, 0.9, 2.0]], dtype=torch.float64)
    return SimpleNamespace(
        drive=drive,
        moments=moments,
        Driven=Driven,
        Gaussian=Gaussian,
        data=gaussian,
        z=z,
    )


@pytest.fixture(params=list(SCHEDULES))
def schedule(request):
    return SCHEDULES[request.param]
