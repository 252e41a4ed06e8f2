"""Fidelity and diversity from nearest neighbours among real and generated features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairlead.metrics.bootstrap import Estimate, mean_interval

CHUNK = 1024
SLACK = 1e-9
"""Distances closer than this, relatively, are ties: `<=` counts them, `<` does not."""


@dataclass(frozen=True)
class Neighbours:
    """The four numbers; see `precision_recall` and `density_coverage`."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def precision_recall(
    real: Tensor, generated: Tensor, k: int = 3, *, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Share of each set inside the other's balls.

    With `r_k(a)` the distance from `a` to its k-th neighbour in its own set: precision is the
    share of `g` with `|g - r| <= r_k(r)` for some `r`, recall that of `r` with
    `|r - g| <= r_k(g)` for some `g`. Intervals are over the set averaged over.

    Args:
        real: `(N, d)`, N > k.
        generated: `(M, d)`, M > k; compare at N = M.
        k: Which neighbour.
        seed: Seed of the intervals.

    Source:
        Kynkäänniemi et al. (2019), arXiv:1904.06991.
    """
    real, generated = _centred(real, generated, k)
    inside = _inside(generated, real, radii(real, k), 1 + SLACK) > 0
    back = _inside(real, generated, radii(generated, k), 1 + SLACK) > 0
    return mean_interval(inside.double(), seed=seed), mean_interval(back.double(), seed=seed)


def density_coverage(
    real: Tensor, generated: Tensor, k: int = 5, *, strict: bool = True, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """How often real balls hold generated samples, and how many do.

    Density is `sum_g #{r: |g - r| < r_k(r)} / (k M)`, which may exceed 1; coverage is the
    share of `r` with a `g` closer than `r_k(r)`. For equal distributions density is 1 on
    average and coverage `expected_coverage(N, M, k)`.

    Args:
        real: `(N, d)`, N > k.
        generated: `(M, d)`, M > k.
        k: Which neighbour.
        strict: `<` as in the authors' code; else `<=` as in their equations. They differ where
            a generated sample copies a real one.
        seed: Seed of the intervals.

    Source:
        Naeem et al. (2020), arXiv:2002.09797.
    """
    real, generated = _centred(real, generated, k)
    factor = 1 - SLACK if strict else 1 + SLACK
    radius = radii(real, k)
    density = _inside(generated, real, radius, factor) / k
    nearest = torch.cat([torch.cdist(r, generated).amin(1) for r in torch.split(real, CHUNK)])
    hit = nearest < radius * factor
    return mean_interval(density, seed=seed), mean_interval(hit.double(), seed=seed)


def neighbour_metrics(real: Tensor, generated: Tensor, *, seed: int = 0) -> Neighbours:
    """All four at their usual `k`, 3 for precision and recall, 5 for density and coverage."""
    return Neighbours(
        *precision_recall(real, generated, seed=seed),
        *density_coverage(real, generated, seed=seed),
    )


def expected_coverage(n: int, m: int, k: int = 5) -> float:
    """Coverage expected of `n` real and `m` generated samples of one continuous distribution.

    `1 - prod_{i=1..k} (n - i) / (m + n - i)`.
    """
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (n - i) / (m + n - i)
    return 1 - missed


def authenticity(train: Tensor, generated: Tensor, *, seed: int = 0) -> Estimate:
    """Share of generated samples that are no copies of training samples.

    A sample counts if it is farther from its nearest training sample than that one is from
    its own nearest.

    Source:
        Alaa et al. (2022), arXiv:2102.08921.
    """
    train, generated = _centred(train, generated, 1)
    own = radii(train, 1)
    authentic = []
    for g in torch.split(generated, CHUNK):
        distance, index = torch.cdist(g, train).min(1)
        authentic.append(distance > own[index])
    return mean_interval(torch.cat(authentic).double(), seed=seed)


def radii(points: Tensor, k: int) -> Tensor:
    """Distance of each of `(N, d)` points to its k-th nearest other point, `(N,)`."""
    found = []
    for start in range(0, len(points), CHUNK):
        apart = torch.cdist(points[start : start + CHUNK], points)
        rows = torch.arange(len(apart))
        apart[rows, start + rows] = torch.inf  # itself; a copy of it is a neighbour
        found.append(apart.kthvalue(k, dim=1).values)
    return torch.cat(found)


def _inside(points: Tensor, centres: Tensor, radius: Tensor, factor: float) -> Tensor:
    """In how many balls each point lies, `(N,)` float64."""
    parts = [(torch.cdist(p, centres) < radius * factor).sum(1) for p in torch.split(points, CHUNK)]
    return torch.cat(parts).double()


def _centred(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"neighbours: features must be (N, d) and (M, d), got {tuple(real.shape)} and "
            f"{tuple(generated.shape)}"
        )
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"neighbours: k must be below the number of samples, got {k} for {len(real)} real "
            f"and {len(generated)} generated"
        )
    real, generated = real.detach().double().cpu(), generated.detach().double().cpu()
    centre = real.mean(0)  # cdist loses digits far from the origin
    return real - centre, generated - centre
