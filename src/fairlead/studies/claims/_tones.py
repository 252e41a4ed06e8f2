"""Signals of one frequency a class, in white noise: latents without bounds, exactly."""

import math

import torch
from torch import Tensor

import fairlead as fl
from fairlead.condition import Condition
from fairlead.metrics import Estimate, bootstrap, mean_interval
from fairlead.schedules import EDM, Level

LENGTH = 64
FREQUENCIES = (3, 4, 5, 6)
POWER, NOISE = 32.3, 0.3


def basis() -> Tensor:
    """Cosine and sine of each class, of unit length, `(classes, 2, LENGTH)`."""
    at = 2 * math.pi * torch.arange(LENGTH, dtype=torch.float64) / LENGTH
    waves = [torch.stack([(f * at).cos(), (f * at).sin()]) for f in FREQUENCIES]
    return torch.stack(waves) / math.sqrt(LENGTH / 2)


class Tones(fl.Denoiser):
    """Class `k`: variance 32.3 along its two waves and 0.3 across; null: all with equal weight."""

    def __init__(self) -> None:
        super().__init__(lambda x, t: x, EDM(), "sample", null={"label": -1}, shape=(1, LENGTH))

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        along = self.parts(x)
        inside = POWER / (POWER + level.sigma**2)
        outside = NOISE / (NOISE + level.sigma**2)
        means = outside * x + (inside - outside) * along  # (classes, B, 1, LENGTH)
        shares = self.log_posterior(x, level.sigma).softmax(1)
        own = torch.nn.functional.one_hot(condition["label"].clamp(min=0), len(FREQUENCIES))
        weights = torch.where(condition["label"][:, None] < 0, shares, own.to(x))
        return torch.einsum("bk,kbcl->bcl", weights, means)

    def parts(self, x: Tensor) -> Tensor:
        """What of `x` lies along the waves of each class, `(classes, B, 1, LENGTH)`."""
        waves = basis().to(x)
        return torch.einsum("bcl,kwl,kwm->kbcm", x, waves, waves)

    def log_posterior(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Log probability of each class, up to a constant, `(B, classes)`."""
        along = self.parts(x).square().sum((2, 3)).T
        gap = 1 / (NOISE + sigma**2) - 1 / (POWER + sigma**2)
        return 0.5 * gap * along

    def draw(self, guide: str, n: int = 600, steps: int = 64) -> tuple[Tensor, Tensor]:
        """Samples of all classes in turn by Euler's method, and their labels."""
        labels = torch.arange(n) % len(FREQUENCIES)
        out = fl.sample(
            self,
            {"label": labels},
            guide=guide,
            sampler="euler",
            steps=steps,
            dtype=torch.float64,
            record=False,
        )
        return out.x, labels


def rms(x: Tensor) -> Estimate:
    """Root mean square of a signal, mean over signals."""
    return mean_interval(x.square().mean((1, 2)).sqrt())


def accuracy(model: Tones, x: Tensor, labels: Tensor) -> Estimate:
    """Share of signals whose class is the likeliest."""
    return mean_interval((model.log_posterior(x).argmax(1) == labels).double())


def in_band(model: Tones, x: Tensor, labels: Tensor) -> Estimate:
    """Share of all power that lies along the waves of the class."""
    own = model.parts(x)[labels, torch.arange(len(x))].square().sum((1, 2))
    both = torch.stack([own, x.square().sum((1, 2))], 1)
    return bootstrap(lambda y: y[:, 0].sum() / y[:, 1].sum(), both, resamples=200)
