"""Gaussian sequences, some frames of which are given, in noise of any level."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairlead import nulls
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.exact.distribution import levels, returned
from fairlead.schedules import Level, NoiseSchedule


class GaussianSequence:
    r"""A stationary Gaussian sequence: the rest of it is generated from frames that are given.

    Given frames ``h`` may be in noise: ``y = sqrt(1 - k^2) h + k n`` at a level ``k`` for each
    frame, 0 clean and 1 pure noise. With ``x = alpha g + sigma n'`` the generated ones,

    .. math:: E[g \mid x, y] = S_{g o} \, S_{o o}^{-1} \, o, \qquad o = (x, y),

    so what guidance on a history should do is known in closed form.

    Args:
        covariance: `(F, F)` of all frames.
        given: Indices of the frames that are given, the condition `history`.

    Raises:
        ValueError: The covariance is not square, or an index is none of its frames.

    Example:
        >>> import torch
        >>> from fairlead.exact import GaussianSequence
        >>> s = GaussianSequence(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), given=[0])
        >>> s.mean(torch.tensor([[2.0]]))
        tensor([[1.]], dtype=torch.float64)
    """

    def __init__(self, covariance: Tensor, given: Sequence[int]) -> None:
        self.covariance = torch.as_tensor(covariance, dtype=torch.float64)
        frames = self.covariance.shape[0]
        if self.covariance.shape != (frames, frames):
            raise ValueError(
                f"GaussianSequence: covariance must be square, got {tuple(self.covariance.shape)}"
            )
        if not given or any(not 0 <= i < frames for i in given):
            raise ValueError(f"GaussianSequence: given must be in 0..{frames - 1}, got {given}")
        self.given = list(given)
        self.free = [i for i in range(frames) if i not in self.given]

    @classmethod
    def autoregressive(
        cls, coefficients: Sequence[float], frames: int, given: Sequence[int]
    ) -> "GaussianSequence":
        """The stationary process `x_i = sum_j phi_j x_{i-j} + noise` of unit variance.

        Args:
            coefficients: `phi_1, phi_2, ...` of a stable process.
            frames: Number of frames.
            given: Indices of the frames that are given.
        """
        order = len(coefficients)
        # Yule-Walker: r_k = sum_j phi_j r_{|k-j|}, r_0 = 1
        system = torch.eye(order, dtype=torch.float64)
        right = torch.zeros(order, dtype=torch.float64)
        for k in range(1, order + 1):
            for j, phi in enumerate(coefficients, 1):
                if k == j:
                    right[k - 1] += phi
                else:
                    system[k - 1, abs(k - j) - 1] -= phi
        found = [1.0, *torch.linalg.solve(system, right).tolist()]
        for k in range(order + 1, frames):
            found.append(sum(phi * found[k - j] for j, phi in enumerate(coefficients, 1)))
        index = torch.arange(frames)
        return cls(torch.tensor(found)[(index[:, None] - index).abs()].double(), given)

    def mean(self, history: Tensor, level: float = 0.0) -> Tensor:
        """Mean `(B, G)` of the generated frames given the others, `(B, H)`, in noise of a level."""
        kept = (1 - level**2) ** 0.5
        s = self.covariance
        seen = (
            kept**2 * s[self.given][:, self.given] + level**2 * torch.eye(len(self.given)).double()
        )
        gain: Tensor = torch.linalg.solve(seen, kept * s[self.given][:, self.free]).T
        return history.double() @ gain.T

    def spread(self) -> Tensor:
        """Covariance `(G, G)` of the generated frames given the others, clean."""
        s, g, h = self.covariance, self.free, self.given
        explained: Tensor = s[g][:, h] @ torch.linalg.solve(s[h][:, h], s[h][:, g])
        return s[g][:, g] - explained

    def x0(self, x: Tensor, level: Level, history: Tensor, history_level: Tensor) -> Tensor:
        """Posterior mean of the generated frames.

        Shapes: x `(B, G)`; history and history_level `(B, H)`; returns `(B, G)`.
        """
        out = torch.empty(x.shape, dtype=torch.float64)
        for said in torch.unique(history_level, dim=0):
            rows = (history_level == said).all(1)
            gain = self._gain(level, said.double())
            seen = torch.cat([x[rows].double(), history[rows].double()], 1)
            out[rows] = seen @ gain.T
        return returned(out, x)

    def _gain(self, level: Level, k: Tensor) -> Tensor:
        alpha, sigma = (v.item() for v in levels(level, self.covariance))
        order = [*self.free, *self.given]
        s = self.covariance[order][:, order]
        free = len(self.free)
        kept = torch.cat([torch.full((free,), alpha, dtype=torch.float64), (1 - k**2).sqrt()])
        noise = torch.cat([torch.full((free,), sigma, dtype=torch.float64), k])
        seen = kept[:, None] * s * kept + torch.diag(noise**2)
        gain: Tensor = torch.linalg.solve(seen, kept[:, None] * s[:, :free]).T
        return gain

    def denoiser(self, schedule: NoiseSchedule) -> "SequenceDenoiser":
        """The exact denoiser under a schedule; conditions `history` and `history_level`."""
        return SequenceDenoiser(self, schedule)


class SequenceDenoiser(Denoiser):
    """The exact denoiser of a `GaussianSequence`; null is noise at the highest level."""

    def __init__(self, sequence: GaussianSequence, schedule: NoiseSchedule) -> None:
        self.sequence = sequence
        super().__init__(
            sequence.x0,
            schedule,
            "sample",
            null={"history": nulls.noise(history_level=1.0)},
            shape=(len(sequence.free),),
        )

    def check(self, condition: Condition) -> None:
        """Nothing: the sequence takes a history of any kind."""

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The exact clean estimate; see `GaussianSequence.x0`."""
        return self.sequence.x0(x, level, condition["history"], condition["history_level"])
