"""Mixtures on the unit cube under reflected noise."""

import torch
from torch import Tensor

from fairlead.exact.distribution import Distribution, Label, levels, returned
from fairlead.reflection import heat_kernel, reflect
from fairlead.schedules import Level


class ReflectedMixture(Distribution):
    r"""A labelled mixture of reflected Gaussians on ``[0, 1]^d``, dimensions independent.

    A reflected ``N(m, q^2)`` under reflected noise of deviation ``sigma`` is the heat kernel from
    ``m`` of variance ``q^2 + sigma^2``. There is no posterior mean in closed form; ``x0`` is
    ``x + sigma^2 s``, the affine image of the score ``s`` that samplers turn back into it.

    Args:
        means: ``(K,)`` or ``(K, d)``, in [0, 1].
        deviation: ``q`` > 0, of all components.
        weights: ``(K,)``, > 0; normalised. Default: equal.
        labels: ``(K,)`` class of each component. Default: one class.

    Raises:
        ValueError: A mean lies outside the cube, or ``deviation`` is not positive.

    Example:
        >>> from fairlead.exact import ReflectedMixture
        >>> p = ReflectedMixture([0.12, 0.8], 0.06, labels=[0, 1])
        >>> p.sample(100).amax() <= 1
        tensor(True)
    """

    def __init__(
        self,
        means: Tensor | list[float] | list[list[float]],
        deviation: float,
        weights: list[float] | None = None,
        labels: list[int] | None = None,
    ) -> None:
        centres = torch.as_tensor(means, dtype=torch.float64)
        self.means = centres[:, None] if centres.ndim == 1 else centres
        if not ((self.means >= 0) & (self.means <= 1)).all():
            raise ValueError("ReflectedMixture: means must be in [0, 1]")
        if not deviation > 0:
            raise ValueError(f"ReflectedMixture: deviation must be above 0, got {deviation}")
        k, self.dim = self.means.shape
        self.deviation = deviation
        own = torch.tensor(labels or [0] * k)
        w = torch.tensor(weights or [1.0] * k, dtype=torch.float64)
        self.classes = int(own.max()) + 1
        member = own == torch.arange(self.classes)[:, None]
        table = torch.cat([member * w, w[None]])
        # row c holds log pi_k given class c, the last row those of the marginal
        self._log_weights = (table / table.sum(1, keepdim=True)).log()

    def log_density(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`log p(x_t | c)` in nats, `(B, d)` to `(B,)`."""
        joint, _ = self._parts(x, level, label)
        return returned(joint.logsumexp(1), x)

    def score(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`grad_x log p(x_t | c)`, `(B, d)`; 0 at the walls."""
        joint, slopes = self._parts(x, level, label)
        return returned((joint.softmax(1)[..., None] * slopes).sum(1), x)

    def x0(self, x: Tensor, level: Level, label: Label = None) -> Tensor:
        """`x + sigma^2 s`, `(B, d)`: not a mean, but what carries the score."""
        _, sigma = levels(level, x)
        return returned(x.double() + sigma**2 * self.score(x.double(), level, label), x)

    def sample(
        self, n: int, label: Label = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """`n` clean samples, `(n, d)` in float64."""
        weights = self._log_weights[self._index(label, n, torch.device("cpu"))].exp()
        k = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        return reflect(self.means[k] + self.deviation * noise)

    def box(self, span: float, level: Level | None = None) -> tuple[Tensor, Tensor]:
        """The corners of the cube."""
        return torch.zeros(self.dim).double(), torch.ones(self.dim).double()

    def narrowest(self, level: Level | None = None) -> float:
        """The components' deviation under the noise of a level."""
        sigma = 0.0 if level is None else float(level.sigma)
        return float((self.deviation**2 + sigma**2) ** 0.5)

    def _parts(self, x: Tensor, level: Level | None, label: Label) -> tuple[Tensor, Tensor]:
        """`log pi_k + log p_k(x)`, `(B, K)`, and the score of each component, `(B, K, d)`."""
        self._check(x)
        _, sigma = levels(level, x)
        variance = (self.deviation**2 + sigma**2)[:, None]
        inside = reflect(x.double())[:, None]
        log_p, slopes = heat_kernel(inside, self.means[None].expand(len(x), -1, -1), variance)
        index = self._index(label, len(x), x.device)
        return self._log_weights[index] + log_p.sum(-1), slopes
