"""The exact class posterior of a distribution, as a judge."""

from typing import Protocol

from torch import Tensor

from fairlead.energy.base import CLEAN, Judge, whole
from fairlead.schedules import Level


class Classified(Protocol):
    """A distribution that knows the class posterior of noisy samples."""

    def log_posterior(self, x: Tensor, level: Level | None = None) -> Tensor:
        """`log p(c | x_t)` of every class, `(B, d)` to `(B, C)`."""
        ...


class Posterior(Judge):
    """Minus the exact `log p(label | x)` of a distribution such as `fl.exact.GaussianMixture`.

    Args:
        distribution: Has `log_posterior(x, level)`.
        label: The class asked for, one for all samples or one a sample.
        noisy: Whether it judges noisy samples at their level, else clean estimates.
        name: How guides call it.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.25, labels=[0, 1])
        >>> fl.energy.Posterior(p, 1)(torch.zeros(1, 1))
        tensor([0.6931])
    """

    def __init__(
        self,
        distribution: Classified,
        label: int | Tensor | list[int],
        *,
        noisy: bool = True,
        name: str = "posterior",
    ) -> None:
        self.distribution, self.label = distribution, whole("Posterior", label)
        self.noisy, self.name = noisy, name

    def log_probs(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        return self.distribution.log_posterior(z, level if self.noisy else None)
