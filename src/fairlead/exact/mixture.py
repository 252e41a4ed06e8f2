"""Mixtures of Gaussians, whose noised density, score and denoiser are closed forms."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fairlead.exact.components import Components, log_normal
from fairlead.exact.distribution import NULL, Distribution, Label, levels, returned
from fairlead.schedules import Level

ELEMENTS = 1 << 18
"""Numbers in the largest intermediate tensor, 2 MB; longer batches go in chunks."""


class GaussianMixture(Distribution):
    r"""A labelled mixture of Gaussians, exact at every noise level.

    With components `k` of weight `pi_k`, mean `m_k`, covariance `S_k` and class `c_k`, and
    `S_k = U_k diag(l_k) U_k^T` computed once, a level costs a few matrix products:

    .. math::
        C_k &= \alpha^2 S_k + \sigma^2 I, \qquad
        p(x \mid c) \propto \sum_{k: c_k = c} \pi_k \, N(x; \alpha m_k, C_k), \\
        D(x) &= \sum_k r_k \, [m_k + \alpha S_k C_k^{-1} (x - \alpha m_k)],

    where `r_k` are the responsibilities among the components of the class (of all, for the
    marginal). `alpha = 0` gives the mean, `sigma = 0` gives `x / alpha`.

    Args:
        means: `(K, d)`, or `(K,)` on a line.
        covs: Variances as one number or `(K,)`, `(K, d)` for diagonal, `(K, d, d)` for full
            covariances. Zero is allowed (point masses) where `sigma > 0`.
        weights: `(K,)`, > 0; normalised. Default: equal.
        labels: `(K,)` class of each component, each class non-empty. Default: one class.

    Raises:
        ValueError: Shapes do not fit, a covariance is not symmetric or not positive, a weight
            is not positive, or a class is empty.

    Example:
        >>> from fairlead.exact import GaussianMixture
        >>> from fairlead.schedules import Level
        >>> m = GaussianMixture([[-1.0], [1.0]], 0.25, labels=[0, 1])
        >>> m.x0(torch.zeros(1, 1), Level(1.0, 1.0, 0.5), 1)
        tensor([[0.5000]])
    """

    def __init__(
        self,
        means: Tensor | list[list[float]] | list[float],
        covs: Tensor | float | list[float],
        weights: Tensor | list[float] | None = None,
        labels: Tensor | list[int] | None = None,
    ) -> None:
        self.parts = Components(means, covs)
        self.means = self.parts.means
        k, self.dim = self.means.shape
        w = torch.ones(k) if weights is None else torch.as_tensor(weights)
        w = w.to(self.means)
        own = torch.zeros(k) if labels is None else torch.as_tensor(labels)
        self.labels = own.to(self.means.device).long()
        if w.shape != (k,) or self.labels.shape != (k,):
            raise ValueError(f"GaussianMixture: weights and labels must be ({k},), one a component")
        if not (w > 0).all():
            raise ValueError("GaussianMixture: weights must be positive")
        self.weights = w / w.sum()
        self.classes = int(self.labels.max()) + 1
        self.prior = torch.zeros(self.classes).to(w).index_add(0, self.labels, self.weights)
        """`(C,)` probability of each class."""
        if (self.labels < 0).any() or not (self.prior > 0).all():
            raise ValueError(f"GaussianMixture: labels must fill 0..{self.classes - 1}")
        member = self.labels == torch.arange(self.classes, device=w.device)[:, None]
        inside = torch.where(member, self.weights / self.prior[:, None], 0.0)
        # row c holds log pi_k given class c, the last row those of the marginal
        self._log_weights = torch.cat([inside, self.weights[None]]).log()

    def log_density(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`log p(x_t | c)` in nats, `(B, d)` to `(B,)`.

        Raises:
            ValueError: A component is a point mass at this level.
        """
        return self._map(lambda joint, *_: joint.logsumexp(1), x, level, label)

    def responsibilities(
        self, x: Tensor, level: Level | None = None, label: Label = None
    ) -> Tensor:
        """`p(k | x_t, c)`, the share of each component, `(B, d)` to `(B, K)`."""
        return self._map(lambda joint, *_: joint.softmax(1), x, level, label)

    def log_posterior(self, x: Tensor, level: Level | None = None) -> Tensor:
        """`log p(c | x_t)` of every class, `(B, d)` to `(B, C)`."""

        def classes(joint: Tensor, *_: Tensor) -> Tensor:
            parts = [joint[:, self.labels == c].logsumexp(1) for c in range(self.classes)]
            return torch.stack(parts, 1).log_softmax(1)

        return self._map(classes, x, level, None)

    def score(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`grad_x log p(x_t | c) = -sum_k r_k C_k^{-1} (x - alpha m_k)`, `(B, d)`.

        Raises:
            ValueError: A component is a point mass at this level.
        """

        def score(joint: Tensor, y: Tensor, v: Tensor, _: Tensor) -> Tensor:
            return self.parts.unrotate(joint.softmax(1)[..., None] * (-y / v))

        return self._map(score, x, level, label)

    def x0(self, x: Tensor, level: Level, label: Label = None) -> Tensor:
        """Posterior mean `E[x0 | x_t, c]`, `(B, d)` to `(B, d)`."""
        alpha, sigma = levels(level, x)
        clean = sigma == 0
        # where sigma = 0 any level will do, its result is not used
        safe = Level(0.0, alpha, torch.where(clean, 1.0, sigma))  # type: ignore[arg-type]

        def mean(joint: Tensor, y: Tensor, v: Tensor, a: Tensor) -> Tensor:
            r = joint.softmax(1)
            gain = a[..., None] * self.parts.eigenvalues / v
            return r @ self.means + self.parts.unrotate(r[..., None] * gain * y)

        x0 = self._map(mean, x, safe, label)
        kept = (x.double() / torch.where(clean, alpha, 1.0)).to(x0.dtype)
        return torch.where(clean, kept, x0)

    def sample(
        self, n: int, label: Label = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """`n` clean samples, `(n, d)` in float64; `label` may differ by sample."""
        device = self.means.device
        index = self._index(label, n, device)
        u = torch.rand(n, 1, dtype=torch.float64, generator=generator, device=device)
        z = torch.randn(n, self.dim, dtype=torch.float64, generator=generator, device=device)
        cdf = self._log_weights.exp().cumsum(1)
        cdf = cdf / cdf[:, -1:]
        # right=True: never a component of zero width, which belongs to another class
        k = torch.searchsorted(cdf[index], u, right=True)[:, 0].clamp(max=len(self.means) - 1)
        return self.means[k] + self.parts.colour(z, k)

    def moments(self, label: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean `(d,)` and covariance `(d, d)` of clean data, of a class or of all."""
        w = self._log_weights[self._index(label, 1, self.means.device)[0]].exp()
        mean = w @ self.means
        apart = self.means - mean
        inner = torch.einsum("k,kij->ij", w, self.parts.covariances)
        return mean, inner + (w[:, None] * apart).T @ apart

    def restrict(self, label: int) -> "GaussianMixture":
        """The distribution of one class alone, `p(x | c)`, as a mixture of one class."""
        rows = self.labels == label
        if label == NULL or not rows.any():
            raise ValueError(f"restrict: label must be in 0..{self.classes - 1}, got {label}")
        return GaussianMixture(self.means[rows], self.parts.compact[rows], self.weights[rows])

    def given(self, A: Tensor, y: Tensor, noise: float) -> "GaussianMixture":
        r"""The posterior `p(x0 | y)` of a measurement `y = A x0 + noise n`, a mixture again.

        With `G_k = S_k A^T (A S_k A^T + noise^2 I)^{-1}` component `k` becomes
        `N(m_k + G_k (y - A m_k), S_k - G_k A S_k)`, its weight times `N(y; A m_k, ...)`.

        Args:
            A: `(m, d)`.
            y: `(m,)`.
            noise: Standard deviation of the measurement, > 0.
        """
        A, y = A.to(self.means), y.to(self.means)
        S = self.parts.covariances
        seen = A @ S @ A.T + noise**2 * torch.eye(len(A)).to(S)
        gain = torch.linalg.solve(seen, A @ S).mT
        apart = y - self.means @ A.T
        means = self.means + (gain @ apart[..., None])[..., 0]
        covs = S - gain @ A @ S
        values, basis = torch.linalg.eigh(seen)
        weighed = log_normal((basis.mT @ apart[..., None])[..., 0], values)
        weights = (self.weights.log() + weighed).softmax(0)
        return GaussianMixture(means, (covs + covs.mT) / 2, weights, self.labels)

    def widen(self, variance: float) -> "GaussianMixture":
        """Each component's covariance plus `variance I`: a blurred, weaker model of the same."""
        covs = self.parts.compact
        added = covs + variance * (1.0 if covs.ndim == 2 else torch.eye(self.dim).to(covs))
        return GaussianMixture(self.means, added, self.weights, self.labels)

    def to(self, device: torch.device | str) -> "GaussianMixture":
        """A copy on a device."""
        covs = self.parts.compact.to(device)
        return GaussianMixture(self.means.to(device), covs, self.weights, self.labels)

    def box(self, span: float, level: Level | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper corner, `(d,)` each, of all components' means +- `span` deviations."""
        alpha, sigma = levels(level, self.means)
        half = span * (alpha**2 * self.parts.covariances.diagonal(dim1=1, dim2=2) + sigma**2).sqrt()
        return (alpha * self.means - half).amin(0), (alpha * self.means + half).amax(0)

    def narrowest(self, level: Level | None = None) -> float:
        """Least standard deviation of any component in any direction."""
        alpha, sigma = levels(level, self.means)
        return math.sqrt((alpha**2 * self.parts.eigenvalues.min() + sigma**2).min().item())

    def __repr__(self) -> str:
        return (
            f"GaussianMixture(components={len(self.means)}, dim={self.dim}, classes={self.classes})"
        )

    def _map(
        self, function: Callable[..., Tensor], x: Tensor, level: Level | None, label: Label
    ) -> Tensor:
        """Calls `function(joint, y, v, alpha)` on chunks of the batch.

        `joint` `(b, K)` is `log pi_k + log N(x; alpha m_k, C_k)`, `y = U_k^T (x - alpha m_k)`
        `(b, K, d)`, and `v` `(1 or b, K, d)` the eigenvalues of `C_k`.
        """
        self._check(x)
        if x.device != self.means.device:
            return self.to(x.device)._map(function, x, level, label)
        alpha, sigma = levels(level, x)
        index = self._index(label, len(x), x.device)
        size = max(1, ELEMENTS // self.means.numel())
        chunks = []
        for start in range(0, max(len(x), 1), size):
            rows = slice(start, start + size)
            a = alpha[rows] if len(alpha) > 1 else alpha
            s = sigma[rows] if len(sigma) > 1 else sigma
            y, v = self.parts.residuals(x[rows].double(), a, s)
            joint = self._log_weights[index[rows]] + log_normal(y, v)
            chunks.append(function(joint, y, v, a))
        return returned(torch.cat(chunks), x)
