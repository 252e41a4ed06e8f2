"""Corruption of tokens over time: masked and uniform."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.parameters import Range

EPS = 1e-3


@dataclass(frozen=True)
class Process(ABC):
    r"""Tokens that are replaced independently: each is still clean at time `t` with ``a_t``.

    .. math:: a_t = 1 - (1 - \varepsilon) t, \qquad t \in [0, 1]

    Args:
        tokens: Number `K` of clean token values.
        eps: Share of clean tokens that is left at `t = 1`; 0 gives `a_t = 1 - t`.

    Shapes: times `(B,)`, tokens `(B, L)`.
    """

    name: ClassVar[str] = ""

    tokens: Annotated[int, Range(1, float("inf"))]
    eps: Annotated[float, Range(0, 1, closed="left")] = EPS

    def __post_init__(self) -> None:
        from fairlead.parameters import check_fields

        check_fields(self)

    @property
    def size(self) -> int:
        """Number of token values of a noisy sequence."""
        return self.tokens

    @property
    def mask(self) -> int | None:
        """Index of the mask token, if there is one."""
        return None

    def a(self, t: Tensor | float) -> Tensor | float:
        """Probability that a token is still clean."""
        return 1 - (1 - self.eps) * t

    def corrupt(self, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noisy tokens at times `(B,)`, drawn on the CPU."""
        clean = torch.rand(x.shape, generator=generator) < self.a(t)[:, None]  # type: ignore[index]
        return torch.where(clean, x, self.draw(x.shape, generator))

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Tokens of pure noise."""

    @abstractmethod
    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Continuous-time bound on the negative log-likelihood of each position, in nats.

        Shapes: logits `(B, L, K)`, clean `x` and noisy `z` `(B, L)`, times `(B,)`; to `(B, L)`.
        """


@dataclass(frozen=True)
class Masked(Process):
    r"""Tokens become the mask, of index `K`, and stay it (MDLM).

    The loss is the weighted cross-entropy at masked positions,
    ``-a'_t / (1 - a_t) * (-log x_theta(x))``.

    Source:
        Sahoo et al. (2024), arXiv:2406.07524; as used in arXiv:2412.10193.
    """

    name: ClassVar[str] = "masked"

    @property
    def size(self) -> int:
        return self.tokens + 1

    @property
    def mask(self) -> int:
        return self.tokens

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return torch.full(shape, self.tokens)

    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        surprise = F.cross_entropy(logits.float().transpose(1, 2), x, reduction="none")
        weight = (1 - self.eps) / (1 - self.a(t))
        return torch.where(z == self.tokens, surprise * weight[:, None], 0.0)  # type: ignore[index]


@dataclass(frozen=True)
class Uniform(Process):
    r"""Tokens become a uniformly drawn one (UDLM).

    With ``i = z_t``, ``xb = K a_t onehot(x) + 1 - a_t`` and ``xbt = K a_t x_theta + 1 - a_t``,
    the loss is

    .. math::
        \frac{a'_t}{K a_t} \Bigl( \frac{K}{xb_i} - \frac{K}{xbt_i}
        - \sum_j \frac{xb_j}{xb_i} \log \frac{xbt_i \, xb_j}{xbt_j \, xb_i} \Bigr) .

    Source:
        Schiff et al. (2024), arXiv:2412.10193.
    """

    name: ClassVar[str] = "uniform"

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(self.tokens, shape, generator=generator)

    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        k, a = self.tokens, self.a(t)[:, None, None]  # type: ignore[index]
        wide = logits.double() if logits.dtype == torch.float64 else logits.float()
        true = F.one_hot(x, k).to(wide.dtype) * k * a + 1 - a
        ours = wide.softmax(-1) * k * a + 1 - a
        true_i, ours_i = (v.gather(-1, z[..., None]) for v in (true, ours))
        ratio = true / true_i * (ours_i.log() + true.log() - ours.log() - true_i.log())
        inside = k / true_i - k / ours_i - ratio.sum(-1, keepdim=True)
        return (-(1 - self.eps) / (k * a) * inside).squeeze(-1)


PROCESSES: dict[str, type[Process]] = {"masked": Masked, "uniform": Uniform}
