"""Models made of models."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.schedules import Level


class MixtureDenoiser(Denoiser):
    r"""The denoiser of a mixture of distributions whose noised densities are known.

    .. math:: p(x) = \sum_i \pi_i \, p_i(x \mid c_i), \qquad
              D = \sum_i r_i D_i, \quad r_i \propto \pi_i \, p_i(x_t \mid c_i)

    Where products and tilts of distributions add scores, a mixture needs their densities: those
    of separately trained networks are known up to a constant only, which shifts the shares.

    * Cost: it counts as one evaluation and calls every part, for prediction and for density.

    Args:
        parts: Each a denoiser with a log density and the condition that it holds under; what
            ``fl.sample`` is given comes on top. All under one schedule.
        shares: ``pi_i`` > 0, normalised; equal by default.

    Raises:
        ValueError: There is no part, the numbers of parts and shares differ, or a share is not
            positive.

    Example:
        >>> import fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
        >>> d = p.denoiser(fl.schedules.EDM())
        >>> both = fl.MixtureDenoiser([(d, {"label": 0}), (d, {"label": 1})], shares=[3, 1])
        >>> bool(both(torch.zeros(1, 1), 1.0) < 0)
        True

    Source:
        Du et al. (2023), arXiv:2302.11552.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Denoiser, Mapping[str, Any]]],
        shares: Sequence[float] | None = None,
    ) -> None:
        if not parts:
            raise ValueError("MixtureDenoiser: parts must not be empty")
        shares = [1.0] * len(parts) if shares is None else list(shares)
        if len(shares) != len(parts) or not all(0 < s < math.inf for s in shares):
            raise ValueError(
                f"MixtureDenoiser: shares must be {len(parts)} positive numbers, one a part, "
                f"got {shares}"
            )
        first = parts[0][0]
        super().__init__(first.network, first.schedule, "sample", shape=first.shape)
        self.parts = [(denoiser, Condition(condition)) for denoiser, condition in parts]
        self.log_shares = [math.log(s / sum(shares)) for s in shares]

    def check(self, condition: Condition) -> None:
        """Nothing: each part checks what it is given."""

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean of the mixture, `(B, ...)`."""
        joint = self._joint(x, level, condition)
        shares = joint.softmax(0).reshape(*joint.shape, *[1] * (x.ndim - 1))
        means = [d.predict(x, level, self._own(c, condition, x)) for d, c in self.parts]
        mean: Tensor = (shares.to(means[0].dtype) * torch.stack(means)).sum(0)
        return mean

    def log_density(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """`log sum_i pi_i p_i(x)`, `(B, ...)` to `(B,)`."""
        return self._joint(x, level, condition).logsumexp(0)

    def _joint(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        parts = zip(self.parts, self.log_shares, strict=True)
        return torch.stack(
            [d.log_density(x, level, self._own(c, condition, x)) + s for (d, c), s in parts]
        )

    @staticmethod
    def _own(own: Condition, given: Condition, x: Tensor) -> Condition:
        return Condition({**given.tensors, **own.expand(len(x)).to(x.device).tensors})
