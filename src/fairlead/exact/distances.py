"""How far samples are from a known distribution or from other samples, with intervals."""

import torch
from torch import Tensor

from fairlead.exact.distribution import Distribution, Label
from fairlead.metrics.bootstrap import (
    RESAMPLES,
    Estimate,
    bootstrap,
    counts,
    interval,
    mean_interval,
    pair_means,
)
from fairlead.schedules import Level


def nll(
    distribution: Distribution,
    x: Tensor,
    label: Label = None,
    level: Level | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean negative log-likelihood of samples `(N, d)` in nats: `-mean log p(x | c)`."""
    return mean_interval(-distribution.log_density(x, level, label), resamples, seed=seed)


def energy_distance(x: Tensor, y: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, unbiased; zero only for equal distributions.

    Args:
        x: `(N, d)` samples, N >= 2.
        y: `(M, d)` samples, M >= 2.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Source:
        Székely & Rizzo (2013), doi:10.1016/j.jspi.2013.03.018.
    """
    x, y = _pair(x, y)
    return _two_samples(-torch.cdist(x, x), -torch.cdist(y, y), -torch.cdist(x, y), resamples, seed)


def mmd(
    x: Tensor,
    y: Tensor,
    bandwidth: float | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    r"""Squared maximum mean discrepancy under `k(a, b) = exp(-|a - b|^2 / (2 h^2))`, unbiased.

    .. math:: E k(X, X') + E k(Y, Y') - 2 E k(X, Y)

    An unbiased estimate of a number near zero may be negative.

    Args:
        x: `(N, d)` samples, N >= 2.
        y: `(M, d)` samples, M >= 2.
        bandwidth: `h` in units of `x`, > 0; default: the median distance of all samples.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Raises:
        ValueError: `bandwidth` is not positive.

    Source:
        Gretton et al. (2012), Journal of Machine Learning Research 13.
    """
    x, y = _pair(x, y)
    joint = torch.cat([x, y])
    apart = torch.cdist(joint, joint)
    h = apart.median().item() if bandwidth is None else bandwidth
    if not h > 0:
        raise ValueError(f"mmd: bandwidth must be positive, got {h}")
    k = torch.exp(-(apart**2) / (2 * h**2))
    n = len(x)
    return _two_samples(k[:n, :n], k[n:, n:], k[:n, n:], resamples, seed)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    projections: int = 128,
    p: float = 2.0,
    *,
    resamples: int = 100,
    seed: int = 0,
) -> Estimate:
    r"""Wasserstein distance averaged over directions, `(E_v W_p(v.x, v.y)^p)^(1/p)`.

    In units of `x`. Directions are drawn once from `seed`; in one dimension there is one. The
    estimate is positive even for equal distributions, so compare at equal N. Its interval is
    centred on the value, since resampling adds to the distance.

    Args:
        x: `(N, d)` samples.
        y: `(M, d)` samples.
        projections: Number of directions, >= 1.
        p: Order, >= 1.
        resamples: Bootstrap draws.
        seed: Seed of directions and draws.

    Raises:
        ValueError: `p` or `projections` is below 1.

    Source:
        Bonneel et al. (2015), doi:10.1007/s10851-014-0506-3.
    """
    if p < 1 or projections < 1:
        raise ValueError(
            f"sliced_wasserstein: p and projections must be >= 1, got {p}, {projections}"
        )
    x, y = _pair(x, y)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape[1], projections, dtype=torch.float64, generator=generator)
    v = torch.ones(1, 1, dtype=torch.float64) if x.shape[1] == 1 else v / v.norm(dim=0)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        gaps = (_quantiles(a, b) - _quantiles(b, a)).abs() ** p
        return gaps.mean() ** (1 / p)

    return bootstrap(distance, x @ v, y @ v, resamples=resamples, seed=seed, centred=True)


def _quantiles(a: Tensor, b: Tensor) -> Tensor:
    """Each column of `a` sorted, at as many middle quantiles as the larger sample has rows."""
    ordered, most = a.sort(0).values, max(len(a), len(b))
    rows = ((torch.arange(most).double() + 0.5) / most * len(a)).long().clamp(max=len(a) - 1)
    return ordered[rows]


def _two_samples(xx: Tensor, yy: Tensor, xy: Tensor, resamples: int, seed: int) -> Estimate:
    """`E k(X, X') + E k(Y, Y') - 2 E k(X, Y)` from kernel matrices."""

    def value(a: Tensor, b: Tensor) -> Tensor:
        cross = ((a @ xy) * b).sum(1) / (a.sum(1) * b.sum(1))
        return pair_means(xx, a) + pair_means(yy, b) - 2 * cross

    n, m = xy.shape
    ones = [torch.ones(1, size, dtype=torch.float64) for size in (n, m)]
    draws = value(counts(n, resamples, seed), counts(m, resamples, seed + 1))
    return interval(value(*ones).item(), draws)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"distance: samples must be (N, d) and (M, d) with N, M >= 2, got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    return x.detach().double().cpu(), y.detach().double().cpu()
