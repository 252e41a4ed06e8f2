"""Mixtures with several conditions, each subset of which has a known score."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.exact.distribution import NULL, ExactDenoiser
from fairlead.exact.mixture import GaussianMixture
from fairlead.schedules import Level, NoiseSchedule


class LabelledMixture(GaussianMixture):
    r"""A mixture of Gaussians whose components carry a value for each of several conditions.

    Any subset of the conditions may be asked for; the others are summed over:

    .. math:: p(x \mid c_S) \propto \sum_{k: \, l_{k,j} = c_j \, \forall j \in S}
              \pi_k \, N(x; m_k, S_k)

    so that what guidance over several conditions should do is known in closed form. Where
    :class:`GaussianMixture` takes a class, this takes a mapping from name to value, `(B,)` or one
    number; a name that is missing, or -1, is not asked for.

    Args:
        means: As in :class:`GaussianMixture`.
        covs: As there.
        labels: For each condition the value of every component, `(K,)`, from 0.
        weights: As there.

    Raises:
        ValueError: Shapes do not fit, or a value of a condition has no component.

    Example:
        >>> import torch
        >>> from fairlead.exact import LabelledMixture
        >>> from fairlead.schedules import Level
        >>> m = LabelledMixture([[-1.0, 0.0], [1.0, 0.0], [1.0, 2.0]], 0.25,
        ...     labels={"side": [0, 1, 1], "top": [0, 0, 1]})
        >>> m.x0(torch.zeros(1, 2), Level(1.0, 1.0, 0.0001), {"side": 1, "top": 0}).round()
        tensor([[0., 0.]])
        >>> m.mean({"side": 1})
        tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        means: Tensor | list[list[float]] | list[float],
        covs: Tensor | float | list[float],
        labels: Mapping[str, Sequence[int] | Tensor],
        weights: Tensor | list[float] | None = None,
    ) -> None:
        super().__init__(means, covs, weights)
        k = len(self.means)
        self.values = {n: torch.as_tensor(v, device=self.means.device) for n, v in labels.items()}
        self.sizes: dict[str, int] = {}
        for name, own in self.values.items():
            if own.shape != (k,):
                raise ValueError(f"LabelledMixture: {name} must be ({k},), one value a component")
            self.sizes[name] = int(own.max()) + 1
            if sorted(set(own.tolist())) != list(range(self.sizes[name])):
                raise ValueError(
                    f"LabelledMixture: {name} must fill 0..{self.sizes[name] - 1}, got "
                    f"{own.tolist()}"
                )
        rows = []
        for asked in product(*(range(NULL, size) for size in self.sizes.values())):
            inside = torch.ones(k, dtype=torch.bool, device=self.means.device)
            for own, value in zip(self.values.values(), asked, strict=True):
                inside &= (own == value) | (value == NULL)
            share = self.weights * inside
            rows.append(share / share.sum() if bool(inside.any()) else share)
        # a row for each combination of values, in the order of `product`
        self._log_weights = torch.stack(rows).log()

    def _index(self, label: Any, batch: int, device: torch.device) -> Tensor:
        if label is None:
            label = {}
        if not isinstance(label, Mapping):
            raise ValueError(
                f"LabelledMixture: give a value for each of {', '.join(self.sizes)}, as a mapping "
                f"from name, got {label!r}"
            )
        unknown = [name for name in label if name not in self.sizes]
        if unknown:
            raise ValueError(
                f"LabelledMixture: no condition {unknown[0]!r}; there are {', '.join(self.sizes)}"
            )
        index = torch.zeros(batch, dtype=torch.long, device=device)
        for name, size in self.sizes.items():
            value = torch.as_tensor(label.get(name, NULL), device=device).long().expand(batch)
            if bool(((value < NULL) | (value >= size)).any()):
                raise ValueError(f"LabelledMixture: {name} must be in -1..{size - 1}")
            index = index * (size + 1) + value + 1
        empty = ~self._log_weights[index].isfinite().any(1)
        if bool(empty.any()):
            raise ValueError(
                f"LabelledMixture: no component has the values asked for, {dict(label)}"
            )
        return index

    def log_posterior(self, x: Tensor, level: Level | None = None, name: str = "") -> Tensor:
        """`log p(c | x_t)` of every value of the condition `name`, `(B, d)` to `(B, C)`."""
        own = self.values[name]

        def values(joint: Tensor, *_: Tensor) -> Tensor:
            parts = [joint[:, own == c].logsumexp(1) for c in range(self.sizes[name])]
            return torch.stack(parts, 1).log_softmax(1)

        return self._map(values, x, level, None)

    def mean(self, label: Mapping[str, int] | None = None) -> Tensor:
        """Mean `(d,)` of clean data under the values asked for."""
        return self._log_weights[self._index(label, 1, self.means.device)[0]].exp() @ self.means

    def to(self, device: torch.device | str) -> "LabelledMixture":
        """A copy on a device."""
        values = {name: own.to(device) for name, own in self.values.items()}
        means, covs = self.means.to(device), self.parts.compact.to(device)
        return LabelledMixture(means, covs, values, self.weights.to(device))

    def widen(self, variance: float) -> "LabelledMixture":
        """Each component's covariance plus `variance I`: a blurred, weaker model of the same."""
        return LabelledMixture(
            self.means, super().widen(variance).parts.compact, self.values, self.weights
        )

    def denoiser(
        self, schedule: NoiseSchedule, models: Mapping[str, Denoiser] | None = None
    ) -> "LabelledDenoiser":
        """The exact denoiser under a schedule, with the conditions by name and null -1.

        Args:
            schedule: Noise schedule.
            models: Further denoisers by name.
        """
        return LabelledDenoiser(self, schedule, models)


class LabelledDenoiser(ExactDenoiser):
    """The exact posterior mean of a `LabelledMixture` under any subset of its conditions."""

    def __init__(
        self,
        distribution: LabelledMixture,
        schedule: NoiseSchedule,
        models: Mapping[str, Denoiser] | None = None,
    ) -> None:
        super().__init__(distribution, schedule, models)
        self.mixture = distribution
        self.null = dict.fromkeys(distribution.sizes, NULL)
        self.choices = dict(distribution.sizes)
        self.trained = None

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The exact clean estimate under the conditions that are not null."""
        return self.mixture.x0(x, level, condition)
