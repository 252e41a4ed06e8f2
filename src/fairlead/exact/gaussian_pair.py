"""A pair of Gaussians on a line, where every result of guidance is one number."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fairlead.exact.distribution import Distribution, Label, levels, returned
from fairlead.parameters import Range, check_fields
from fairlead.schedules import Level


@dataclass(frozen=True)
class GaussianPair(Distribution):
    r"""`p(x) = N(0, v_u)` and `p(x | c) = N(0, v_c)` in one dimension, `c` being class 0.

    Guidance of constant weight is linear here: `s_w = -a x`, and at a level

    .. math::
        a = \frac{1 - w}{\alpha^2 v_u + \sigma^2} + \frac{w}{\alpha^2 v_c + \sigma^2} .

    The methods below give the exact end variances under variance-exploding noise from an
    infinite level, all with `s_w`; they differ from each other for every `w` but 0 and 1.
    `fairlead.exact.recursions` has those of samplers with finitely many steps.

    Args:
        variance: `v_u`, of the marginal.
        cond_variance: `v_c`, of the class.

    Raises:
        ValueError: A variance is not positive.

    Example:
        >>> from fairlead.exact import GaussianPair
        >>> pair = GaussianPair()
        >>> pair.ode_variance(3), round(pair.sde_variance(3), 4), pair.tilted_variance(3)
        (0.25, 0.3875, 0.5)
    """

    variance: Annotated[float, Range(0, math.inf, closed="neither")] = 2.0
    cond_variance: Annotated[float, Range(0, math.inf, closed="neither")] = 1.0
    dim = 1
    classes = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def ode_variance(self, w: float) -> float:
        """Of the probability-flow ODE: `v_u^(1-w) v_c^w`."""
        return float(self.variance ** (1 - w) * self.cond_variance**w)

    def sde_variance(self, w: float) -> float:
        r"""Of the reverse SDE.

        `v_u^(2-2w) v_c^(2w) / (v_u - v_c) \int_(v_c/v_u)^1 r^(-2w) dr`.
        """
        u, c, power = self.variance, self.cond_variance, 1 - 2 * w
        if u == c:
            return u
        log_ratio = math.log(c / u)
        integral = -math.expm1(power * log_ratio) / power if power else -log_ratio
        return float(u ** (1 + power) * c ** (1 - power) / (u - c) * integral)

    def tilted_variance(self, w: float) -> float:
        """Of the density `p(x)^(1-w) p(x|c)^w` itself: `1 / ((1-w)/v_u + w/v_c)`.

        Raises:
            ValueError: That density has no finite integral.
        """
        precision = (1 - w) / self.variance + w / self.cond_variance
        if precision <= 0:
            raise ValueError(f"tilted_variance: w must keep the density integrable, got {w}")
        return 1 / precision

    def log_density(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`log p(x_t | c)` in nats, `(B, 1)` to `(B,)`."""
        v, _ = self._noised(x, level, label)
        return returned(-(x.double() ** 2 / v + (2 * math.pi * v).log())[:, 0] / 2, x)

    def score(self, x: Tensor, level: Level | None = None, label: Label = None) -> Tensor:
        """`-x / (alpha^2 v + sigma^2)`, `(B, 1)`."""
        v, _ = self._noised(x, level, label)
        return returned(-x.double() / v, x)

    def x0(self, x: Tensor, level: Level, label: Label = None) -> Tensor:
        """`alpha v x / (alpha^2 v + sigma^2)`, `(B, 1)`."""
        v, alpha = self._noised(x, level, label)
        return returned(alpha * self._clean(x, label) / v * x.double(), x)

    def sample(
        self, n: int, label: Label = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """`n` clean samples, `(n, 1)` in float64; `label` may differ by sample."""
        z = torch.randn(n, 1, dtype=torch.float64, generator=generator)
        return self._clean(z, label).sqrt() * z

    def box(self, span: float, level: Level | None = None) -> tuple[Tensor, Tensor]:
        """Corners `(1,)` of +- `span` of the wider deviation."""
        wide = max(self.variance, self.cond_variance)
        alpha, sigma = levels(level, torch.zeros(1))
        half = span * (alpha**2 * wide + sigma**2).max().sqrt().reshape(1)
        return -half, half

    def narrowest(self, level: Level | None = None) -> float:
        """The narrower deviation."""
        alpha, sigma = levels(level, torch.zeros(1))
        narrow = min(self.variance, self.cond_variance)
        return math.sqrt((alpha**2 * narrow + sigma**2).min().item())

    def _clean(self, x: Tensor, label: Label) -> Tensor:
        null = self._index(label, len(x), x.device) == self.classes
        free, own = (
            torch.tensor(v, dtype=torch.float64) for v in (self.variance, self.cond_variance)
        )
        return torch.where(null, free.to(x.device), own.to(x.device))[:, None]

    def _noised(self, x: Tensor, level: Level | None, label: Label) -> tuple[Tensor, Tensor]:
        self._check(x)
        alpha, sigma = levels(level, x)
        return alpha**2 * self._clean(x, label) + sigma**2, alpha
