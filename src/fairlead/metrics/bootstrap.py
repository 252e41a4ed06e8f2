"""Numbers with their uncertainty: bootstrap intervals of statistics of samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A number computed from samples, and where it would lie for other samples.

    Attributes:
        value: The number.
        low: Lower end of the interval, 95 % unless asked otherwise; `nan` if not computed.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[..., Tensor | float],
    *samples: Tensor,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
    centred: bool = False,
) -> Estimate:
    """Percentile interval of a statistic of one or more samples.

    Each sample is drawn anew with replacement along its first dimension, independently of the
    others. Give rows that belong together as one tensor, or an index as the sample.

    Args:
        statistic: From tensors like `samples` to a number.
        samples: Each `(N, ...)`.
        resamples: Number of draws, >= 2.
        confidence: Probability of the interval, in (0, 1).
        seed: Seed of the draws.
        centred: Move the draws so that their mean is the value; see `interval`.

    Raises:
        ValueError: A sample is empty, or `resamples` or `confidence` is out of range.
    """
    if any(len(s) == 0 for s in samples):
        raise ValueError("bootstrap: samples must not be empty")
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(resamples):
        rows = [torch.randint(len(s), (len(s),), generator=generator) for s in samples]
        drawn = [s[r.to(s.device)] for s, r in zip(samples, rows, strict=True)]
        draws.append(float(statistic(*drawn)))
    value = float(statistic(*samples))
    return interval(value, torch.tensor(draws, dtype=torch.float64), confidence, centred)


def mean_interval(
    values: Tensor, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of `(N,)` numbers with its percentile interval: `bootstrap` of the mean, fast.

    Raises:
        ValueError: There are no values, or they are no vector.
    """
    values = values.detach().double().cpu()
    if values.ndim != 1 or not len(values):
        raise ValueError(f"mean_interval: values must be (N,), N >= 1, got {tuple(values.shape)}")
    draws = counts(len(values), resamples, seed) @ values / len(values)
    return interval(values.mean().item(), draws, confidence)


def interval(
    value: float, draws: Tensor, confidence: float = 0.95, centred: bool = False
) -> Estimate:
    """The quantiles of bootstrap draws `(R,)` around a value.

    Distances between samples grow when rows repeat, which moves all draws above the value;
    `centred` takes that shift away and keeps the spread.

    Raises:
        ValueError: `confidence` is outside (0, 1), or there are fewer than two draws.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"interval: confidence must be in (0, 1), got {confidence}")
    if len(draws) < 2:
        raise ValueError(f"interval: resamples must be at least 2, got {len(draws)}")
    if centred:
        draws = draws - draws.mean() + value
    tail = (1 - confidence) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail]).to(draws)).tolist()
    return Estimate(value, low, high)


def counts(n: int, resamples: int, seed: int) -> Tensor:
    """How often each of `n` rows is drawn: `(resamples, n)` float64, rows adding up to `n`."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(n, (resamples, n), generator=generator)
    ones = torch.ones(resamples, n, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, rows, ones)


def pair_means(matrix: Tensor, weights: Tensor) -> Tensor:
    """Mean of `M_ij` over pairs `i != j`, row `i` counted `w_i` times.

    `sum_{i != j} w_i w_j M_ij / sum_{i != j} w_i w_j`: an unbiased estimate of
    `E M(X, X')`, for `(n, n)` `matrix` and `(R, n)` `weights`; a draw of a row twice is no pair.
    """
    m = matrix.double()
    m = m - torch.diag(m.diagonal())
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    return ((weights @ m) * weights).sum(1) / pairs
