"""What an exact distribution offers: its density, score and denoiser at every noise level."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.schedules import Level, NoiseSchedule

NULL = -1
"""The label that stands for no condition; the number of classes does as well."""

CLEAN = Level(0.0, 1.0, 0.0)

Label = int | Tensor | Mapping[str, Any] | None
"""A class for all samples, `(B,)` classes, or `None` for the marginal; values by name, for a
mixture with several conditions."""


class Distribution(ABC):
    """A labelled distribution of `d`-vectors that is known at every level of noise.

    At a level, `x = alpha x0 + sigma n` with `n ~ N(0, I)`. Everything is computed in float64
    and returned in float64 for float64 `x`, else in float32. A level may hold one `alpha` and
    `sigma` per sample, as `(B,)` or `(B, 1)` tensors; `None` is clean data.
    """

    dim: int
    """Dimension `d` of a sample."""
    classes: int
    """Number of classes `C`; labels are `0..C-1`, and `-1` or `C` means none."""

    @abstractmethod
    def log_density(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`log p(x_t | c)` in nats, `(B, d)` to `(B,)`."""

    @abstractmethod
    def score(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`grad_x log p(x_t | c)`, `(B, d)` to `(B, d)`."""

    @abstractmethod
    def x0(self, x: Tensor, level: Level, label: Label = None) -> Tensor:
        """Posterior mean `E[x0 | x_t, c]`, `(B, d)` to `(B, d)`: the exact denoiser."""

    @abstractmethod
    def sample(
        self, n: int, label: Label = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """`n` clean samples, `(n, d)` in float64; `label` may differ by sample."""

    @abstractmethod
    def box(self, span: float, level: Level | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper corner, `(d,)` each, of all parts' means +- `span` deviations."""

    @abstractmethod
    def narrowest(self, level: Level | None = None) -> float:
        """Least standard deviation of any part in any direction: what a grid must resolve."""

    def guided_score(self, x: Tensor, level: Level | None, label: Label, w: float) -> Tensor:
        """`s_u + w (s_c - s_u)`: on clean data the score of the power-tilted density."""
        free = self.score(x, level)
        return free + w * (self.score(x, level, label) - free)

    def denoiser(
        self, schedule: NoiseSchedule, models: Mapping[str, Denoiser] | None = None
    ) -> "ExactDenoiser":
        """The exact denoiser under a schedule, with condition `label` and null `-1`.

        Args:
            schedule: Noise schedule.
            models: Further denoisers by name, such as a `weak` one.
        """
        return ExactDenoiser(self, schedule, models)

    def _index(self, label: Label, batch: int, device: torch.device) -> Tensor:
        """Labels as `(batch,)` rows of a table whose last row is the marginal.

        Raises:
            ValueError: A label is none of the classes.
        """
        index = torch.as_tensor(NULL if label is None else label, device=device).long()
        if ((index < NULL) | (index > self.classes)).any():
            raise ValueError(
                f"{type(self).__name__}: label must be in 0..{self.classes - 1}, or "
                f"{NULL} or {self.classes} for none, got {index.flatten().tolist()[:8]}"
            )
        return torch.where(index == NULL, self.classes, index).expand(batch)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f"{type(self).__name__}: x must be (B, {self.dim}), got {tuple(x.shape)}"
            )


class ExactDenoiser(Denoiser):
    """The exact posterior mean of a distribution, in the shape of a trained denoiser.

    The condition is `{"label": (B,)}`; without it, or where it is null, the prediction is the
    marginal one.

    Args:
        distribution: What is denoised.
        schedule: Noise schedule.
        models: Further denoisers by name.

    Example:
        >>> from fairlead.exact import GaussianPair
        >>> from fairlead.schedules import EDM
        >>> d = GaussianPair().denoiser(EDM())
        >>> d(torch.ones(1, 1), 1.0, {"label": [0]})
        tensor([[0.5000]])
    """

    def __init__(
        self,
        distribution: Distribution,
        schedule: NoiseSchedule,
        models: Mapping[str, Denoiser] | None = None,
    ) -> None:
        self.distribution = distribution
        super().__init__(
            distribution.x0,
            schedule,
            "sample",
            null={"label": NULL},
            shape=(distribution.dim,),
            trained=("cond", "null"),
            choices={"label": distribution.classes},
            models=models,
        )

    def check(self, condition: Condition) -> None:
        """Nothing: the distribution checks its labels, and takes them or none."""

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The exact clean estimate; see `Distribution.x0`."""
        return self.distribution.x0(x, level, condition.get("label"))

    def log_density(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The exact log density of noisy samples; see `Distribution.log_density`."""
        return self.distribution.log_density(x, level, condition.get("label"))


def levels(level: Level | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """`alpha` and `sigma` as float64 columns, `(1, 1)` or `(B, 1)`, on the device of `x`."""
    at = CLEAN if level is None else level
    alpha = torch.as_tensor(at.alpha, dtype=torch.float64, device=x.device)
    sigma = torch.as_tensor(at.sigma, dtype=torch.float64, device=x.device)
    return alpha.reshape(-1, 1), sigma.reshape(-1, 1)


def returned(value: Tensor, x: Tensor) -> Tensor:
    """`value` in the dtype that results for `x` have."""
    return value.to(working_dtype(x))
