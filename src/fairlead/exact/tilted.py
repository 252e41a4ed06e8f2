"""The power-tilted density that guidance is named after, by numerics of known accuracy."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fairlead.exact.distribution import Distribution, Label
from fairlead.schedules import Level

POINTS = {1: (2001, 20001), 2: (401, 601)}
"""Fewest and most points an axis by dimension, where the caller leaves the number open."""


class TiltedDensity:
    r"""`p_w(x) = p(x)^(1-w) p(x|c)^w / Z` in one or two dimensions, on a grid.

    Guidance does not sample this density, whatever the sampler; the two are compared here. The
    integrals are sums over a regular grid (the trapezoidal rule), whose error falls faster than
    any power of the spacing once it resolves the narrowest part; `error` measures it.

    Args:
        distribution: Of dimension 1 or 2.
        label: The class `c`.
        w: Guidance weight, 0 unconditional and 1 conditional.
        level: Noise level of both densities; default clean data.
        points: Grid points an axis, >= 3; default: what the narrowest part asks for, within
            2001 to 20001 in one dimension and 401 to 601 in two.
        span: The grid covers this many standard deviations around every part.

    Attributes:
        log_normaliser: `log Z` in nats.
        error: `|log Z - log Z'|` with `Z'` from every second point of each axis; far above the
            actual error, so below 1e-6 all numbers are exact for most purposes.
        grid: `(N, d)` points.
        probability: `(N,)` their shares of the mass.
        spacing: `(d,)` distance of neighbours.

    Raises:
        ValueError: The dimension is above 2, or the mass does not vanish at the border (for
            `w < 0` the density may have no finite integral).

    Example:
        >>> from fairlead.exact import GaussianPair
        >>> tilted = TiltedDensity(GaussianPair(), 0, w=3.0)
        >>> round(tilted.cov.item(), 6)
        0.5
    """

    def __init__(
        self,
        distribution: Distribution,
        label: int,
        w: float,
        level: Level | None = None,
        *,
        points: int | None = None,
        span: float = 10.0,
    ) -> None:
        d = distribution.dim
        if d not in POINTS:
            raise ValueError(
                f"TiltedDensity: the dimension must be 1 or 2, got {d}; use tilted_samples"
            )
        self.distribution, self.label, self.w, self.level = distribution, label, w, level
        low, high = distribution.box(span, level)
        if points is None:
            # a tilt by w sharpens a part by at most sqrt(|w| + |1 - w|)
            least = distribution.narrowest(level) / math.sqrt(abs(w) + abs(1 - w))
            wanted = math.ceil(((high - low).max() / least).item() * 2) | 1
            points = min(max(wanted, POINTS[d][0]), POINTS[d][1])
        if points < 3:
            raise ValueError(f"TiltedDensity: points must be at least 3, got {points}")
        ends = zip(low.tolist(), high.tolist(), strict=True)
        axes = [torch.linspace(a, b, points, dtype=torch.float64) for a, b in ends]
        self.spacing = (high - low).cpu() / (points - 1)
        self.grid = torch.cartesian_prod(*axes).reshape(-1, d)
        log_mass = self._tilt(self.grid) + self.spacing.log().sum()
        self.log_normaliser = log_mass.logsumexp(0).item()
        self.probability = log_mass.softmax(0)
        cube = log_mass.reshape([points] * d)
        half = cube[::2] if d == 1 else cube[::2, ::2]
        coarse = half.flatten().logsumexp(0).item() + d * math.log(2)
        self.error = abs(coarse - self.log_normaliser)
        border = cube.clone()
        border[(slice(1, -1),) * d] = -math.inf
        if border.max() > cube.max() - 16:
            raise ValueError(
                f"TiltedDensity: the mass does not vanish at the border; w must keep the density "
                f"integrable, got {w}, or span must grow, got {span}"
            )

    def log_density(self, x: Tensor) -> Tensor:
        """`log p_w(x)`, normalised, `(B, d)` to `(B,)`."""
        return self._tilt(x) - self.log_normaliser

    def score(self, x: Tensor) -> Tensor:
        """`grad log p_w = s_u + w (s_c - s_u)`, exact, `(B, d)`."""
        return self.distribution.guided_score(x, self.level, self.label, self.w)

    def expect(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`E f(x)` for a function from `(N, d)` to `(N, ...)`.

        A probability is the mean of an indicator, with an error of the order of the spacing.
        """
        mean: Tensor = torch.tensordot(self.probability, function(self.grid).double(), 1)
        return mean

    @property
    def mean(self) -> Tensor:
        """`(d,)`."""
        return self.probability @ self.grid

    @property
    def cov(self) -> Tensor:
        """`(d, d)`."""
        apart = self.grid - self.mean
        return (self.probability[:, None] * apart).T @ apart

    @property
    def entropy(self) -> float:
        """`-E log p_w` in nats."""
        return -self.expect(self.log_density).item()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` samples `(n, d)`: inverse cumulative shares, then uniform in the point's cell.

        The cell adds `spacing^2 / 12` to the variance of each axis.
        """
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        cdf = self.probability.cumsum(0)
        row = torch.searchsorted(cdf / cdf[-1], u, right=True).clamp(max=len(cdf) - 1)
        jitter = torch.rand(n, len(self.spacing), dtype=torch.float64, generator=generator) - 0.5
        return self.grid[row] + jitter * self.spacing

    def _tilt(self, x: Tensor) -> Tensor:
        free = self.distribution.log_density(x, self.level)
        own = self.distribution.log_density(x, self.level, self.label)
        return (1 - self.w) * free + self.w * own


class Weighted(NamedTuple):
    """Samples with weights.

    Attributes:
        samples: `(N, d)`.
        weights: `(N,)`, adding up to 1.
        ess: Effective share of the samples, `1 / (N sum weights^2)`, in (0, 1]; below a few
            percent do not trust the result.
    """

    samples: Tensor
    weights: Tensor
    ess: float


def tilted_samples(
    distribution: Distribution,
    label: Label,
    w: float,
    n: int,
    generator: torch.Generator | None = None,
) -> Weighted:
    """Clean samples of `p(x)^(1-w) p(x|c)^w` in any dimension, by importance sampling.

    Drawn from `p(x|c)` with weight `(p(x|c) / p(x))^(w-1)`. For a mixture and `w >= 1` that
    weight is bounded, by `p(c)^(1-w)`.

    Args:
        distribution: Its clean density must be finite.
        label: The class `c`, for all samples or `(n,)`.
        w: Guidance weight.
        n: Number of samples.
        generator: Source of randomness.
    """
    x = distribution.sample(n, label, generator)
    ratio = distribution.log_density(x, None, label) - distribution.log_density(x)
    weights = ((w - 1) * ratio).softmax(0)
    return Weighted(x, weights, 1 / (n * (weights**2).sum().item()))
