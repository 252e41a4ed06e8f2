"""Noise schedules: how much signal and how much noise a sample holds at a time.

A schedule fixes the kernel `x = alpha(t) x0 + sigma(t) n`, `n ~ N(0, I)`. Time falls while
sampling; `t = 0` is always clean data (`alpha = 1, sigma = 0`).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from fairlead.parameters import Range, check_fields, choose

Spacing = Literal["uniform", "trailing", "leading", "karras", "exponential", "log_snr"]


@dataclass(frozen=True)
class Level:
    """One noise level as plain numbers.

    Attributes:
        t: Time in the schedule's own units.
        alpha: Signal level, >= 0.
        sigma: Noise level, >= 0.
        network_time: What a network trained under the schedule takes; `None`: not known.
    """

    t: float
    alpha: float
    sigma: float
    network_time: float | None = None

    @property
    def log_snr(self) -> float:
        """`log(alpha^2 / sigma^2)`; infinite at the ends."""
        if self.sigma == 0:
            return math.inf
        return 2 * math.log(self.alpha / self.sigma) if self.alpha else -math.inf

    @property
    def lam(self) -> float:
        """Half of `log_snr`, the time variable of exponential integrators."""
        return self.log_snr / 2


class NoiseSchedule(ABC):
    """The functions `alpha(t)` and `sigma(t)`, their inverse, and grids of times.

    All functions take times of any shape and keep shape, dtype and device. Give float64
    times where the ends of the schedule matter.
    """

    t_max: float
    """Time of the noisiest level, where sampling starts."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """Time at which `log(alpha^2 / sigma^2)` has the given value: inverse of `log_snr`."""

    def log_snr(self, t: Tensor) -> Tensor:
        """`log(alpha^2 / sigma^2)`, +inf on clean data."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def network_time(self, t: Tensor) -> Tensor:
        """What a network trained under this schedule takes as its time; `t` by default."""
        return t

    @property
    def t_min(self) -> float:
        """Least noisy time of a grid, before the final step to clean data."""
        return 1e-3 * self.t_max

    def level(self, t: float) -> Level:
        """Signal and noise at one time, computed in float64."""
        at = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.alpha(at).item(), self.sigma(at).item()
        return Level(float(t), alpha, sigma, self.network_time(at).item())

    def level_at(self, log_snr: float) -> Level:
        """The level of a given log signal-to-noise ratio."""
        return self.level(self.time(torch.tensor(log_snr, dtype=torch.float64)).item())

    def grid(
        self,
        steps: int,
        spacing: Spacing | None = None,
        *,
        rho: float = 7.0,
        final: Literal["clean", "t_min"] = "clean",
    ) -> list[Level]:
        """The `steps + 1` levels that a sampler walks down, noisiest first.

        Args:
            steps: Number of steps, >= 1.
            spacing: `uniform`, from `t_max` to `t_min` in equal steps of `t`; `trailing`,
                `t_max (1 - i/steps)`; `leading`, one step below trailing; `karras`, equal
                steps of `(sigma/alpha)^(1/rho)`; `exponential` and `log_snr`, equal steps of
                the log signal-to-noise ratio. All but `trailing` and `leading` append a final
                clean level. Default: the schedule's own.
            rho: Exponent of `karras`.
            final: `clean` ends at `t = 0`; `t_min` leaves the last level out, so that a grid
                of `steps` steps ends at `t_min`.

        Raises:
            ValueError: `steps` is below 1, or the spacing is unknown.
        """
        if steps < 1:
            raise ValueError(f"grid: steps must be at least 1, got {steps}")
        spacing = spacing or self.spacing
        choose("grid", "spacing", spacing, SPACINGS)
        count = steps if final == "clean" else steps + 1
        if spacing in ("trailing", "leading"):
            times = self._strided(steps, spacing)
        else:
            ramp = torch.linspace(0, 1, count, dtype=torch.float64)
            times = self._spread(ramp, spacing, rho).tolist()
            times[0] = self.t_max
            times += [0.0] if final == "clean" else []
        return [self.level(t) for t in times]

    spacing: Spacing = "trailing"
    """Spacing of `grid` where none is given."""

    def _strided(self, steps: int, spacing: Spacing) -> list[float]:
        shift = 0.0 if spacing == "trailing" else self.t_max / steps - self.t_min
        times = [self.t_max * (1 - i / steps) - shift for i in range(steps)]
        return [*times, 0.0]

    def _spread(self, ramp: Tensor, spacing: Spacing, rho: float) -> Tensor:
        if spacing == "uniform":
            return self.t_max + ramp * (self.t_min - self.t_max)
        # alpha may be 0 at t_max (no finite log-SNR): measure from just below it
        top = self.t_max if self.level(self.t_max).alpha > 0 else self.t_max * (1 - 1e-3)
        ends = torch.tensor([top, self.t_min], dtype=torch.float64)
        high, low = self.log_snr(ends)
        if spacing == "karras":
            noisy, clean = torch.exp(-high / (2 * rho)), torch.exp(-low / (2 * rho))
            return self.time(-2 * rho * (noisy + ramp * (clean - noisy)).log())
        return self.time(high + ramp * (low - high))


SPACINGS = ("uniform", "trailing", "leading", "karras", "exponential", "log_snr")


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """Variance exploding with `t = sigma`: `alpha = 1`, `sigma = t`.

    Args:
        sigma_min: Least noisy level before clean data, > 0.
        sigma_max: Noisiest level.

    Source:
        Karras et al. (2022), arXiv:2206.00364.
    """

    sigma_min: Annotated[float, Range(0, math.inf, closed="neither")] = 0.002
    sigma_max: Annotated[float, Range(0, math.inf, closed="neither")] = 80.0
    spacing: Spacing = field(default="karras", kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"EDM: sigma_min must be below sigma_max={self.sigma_max}, got {self.sigma_min}"
            )

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2)

    def network_time(self, t: Tensor) -> Tensor:
        return t.log() / 4


@dataclass(frozen=True)
class VP(NoiseSchedule):
    r"""Variance preserving, `alpha^2 + sigma^2 = 1`, continuous time in [0, 1].

    * `linear`: `log alpha = -t^2 (b1 - b0)/4 - t b0/2`.
    * `scaled_linear`: rate `(sqrt b0 + t (sqrt b1 - sqrt b0))^2`.
    * `cosine`: `alpha = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s))`.

    Args:
        kind: Shape of the schedule.
        beta_min: Rate at `t = 0` (`linear`, `scaled_linear`).
        beta_max: Rate at `t = 1`.
        offset: The offset `s` of `cosine`.
        time_scale: Networks take `time_scale * t`.

    Source:
        Song et al. (2021), arXiv:2011.13456; Nichol & Dhariwal (2021), arXiv:2102.09672.
    """

    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_min: Annotated[float, Range(0, math.inf, closed="neither")] = 0.1
    beta_max: Annotated[float, Range(0, math.inf, closed="neither")] = 20.0
    offset: Annotated[float, Range(0, 1, closed="left")] = 0.008
    time_scale: Annotated[float, Range(0, math.inf, closed="neither")] = 1.0
    t_max: float = field(default=1.0, init=False)
    spacing: Spacing = field(default="trailing", kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        choose("VP", "kind", self.kind, ("linear", "scaled_linear", "cosine"))

    def alpha(self, t: Tensor) -> Tensor:
        if self.kind == "cosine":
            s = self.offset
            top = torch.cos(math.pi / 2 * (t + s) / (1 + s)) / math.cos(math.pi / 2 * s / (1 + s))
            return torch.where(t >= 1, torch.zeros_like(t), top)
        return self._log_alpha(t).exp()

    def _log_alpha(self, t: Tensor) -> Tensor:
        b0, b1 = self.beta_min, self.beta_max
        if self.kind == "linear":
            return -(t**2) * (b1 - b0) / 4 - t * b0 / 2
        r0, d = math.sqrt(b0), math.sqrt(b1) - math.sqrt(b0)
        return -(r0**2 * t + r0 * d * t**2 + d**2 * t**3 / 3) / 2

    def sigma(self, t: Tensor) -> Tensor:
        if self.kind == "cosine":
            return (1 - self.alpha(t) ** 2).clamp(min=0).sqrt()
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        # -2 log alpha, without cancellation at either end
        depth = torch.nn.functional.softplus(-log_snr)
        b0, b1 = self.beta_min, self.beta_max
        if self.kind == "linear":
            return 2 * depth / (b0 + torch.sqrt(b0**2 + 2 * (b1 - b0) * depth))
        if self.kind == "scaled_linear":
            r0, d = math.sqrt(b0), math.sqrt(b1) - math.sqrt(b0)
            return ((r0**3 + 3 * d * depth).pow(1 / 3) - r0) / d if d else depth / b0
        s = self.offset
        alpha = torch.exp(-depth / 2) * math.cos(math.pi / 2 * s / (1 + s))
        return (1 + s) * 2 / math.pi * torch.acos(alpha.clamp(max=1)) - s

    def network_time(self, t: Tensor) -> Tensor:
        return self.time_scale * t


@dataclass(frozen=True)
class RectifiedFlow(NoiseSchedule):
    """Straight paths: `alpha = 1 - t`, `sigma = t`, time in [0, 1] with 1 noise.

    Args:
        shift: Moves grids in `t` towards noise, `t -> shift t / (1 + (shift - 1) t)`; 3 is
            usual at high resolution. `alpha` and `sigma` do not change.
        time_scale: Networks take `time_scale * t`; 1000 for many published ones.

    Source:
        Liu et al. (2022), arXiv:2209.03003; shift: Esser et al. (2024), arXiv:2403.03206.
    """

    shift: Annotated[float, Range(0, math.inf, closed="neither")] = 1.0
    time_scale: Annotated[float, Range(0, math.inf, closed="neither")] = 1.0
    t_max: float = field(default=1.0, init=False)
    spacing: Spacing = field(default="trailing", kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def network_time(self, t: Tensor) -> Tensor:
        return self.time_scale * t

    def _shifted(self, t: Any) -> Any:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _strided(self, steps: int, spacing: Spacing) -> list[float]:
        return [self._shifted(t) for t in super()._strided(steps, spacing)]

    def _spread(self, ramp: Tensor, spacing: Spacing, rho: float) -> Tensor:
        times = super()._spread(ramp, spacing, rho)
        return self._shifted(times) if spacing == "uniform" else times


class DiscreteVP(NoiseSchedule):
    """A chain of `T` noising steps with rates `beta_i`, as DDPM trains it.

    Time `t = k` is the state after `k` steps, so `t = 0` is data and `t = T` the end; the
    network of step `k` takes the index `k - 1`. Between whole times `alpha` is linear.

    Args:
        betas: `(T,)`, each in (0, 1].
        zero_terminal_snr: Rescale so that `alpha(T) = 0` exactly; `alpha(1)` stays.

    Source:
        Ho et al. (2020), arXiv:2006.11239; rescale: Lin et al. (2023), arXiv:2305.08891.
    """

    spacing: Spacing = "trailing"

    def __init__(self, betas: Tensor, *, zero_terminal_snr: bool = False) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("DiscreteVP: betas must be a vector of numbers in (0, 1]")
        alpha = torch.cumprod(1 - betas, 0).sqrt()
        if zero_terminal_snr:
            alpha = rescale_zero_terminal_snr(alpha)
        self.alphas = torch.cat([torch.ones(1, dtype=torch.float64), alpha])
        self.t_max = float(len(betas))

    @classmethod
    def linear(
        cls, beta_min: float = 1e-4, beta_max: float = 0.02, steps: int = 1000, **options: bool
    ) -> "DiscreteVP":
        """Rates in equal steps from `beta_min` to `beta_max`."""
        return cls(torch.linspace(beta_min, beta_max, steps, dtype=torch.float64), **options)

    @classmethod
    def scaled_linear(
        cls, beta_min: float = 0.00085, beta_max: float = 0.012, steps: int = 1000, **options: bool
    ) -> "DiscreteVP":
        """Square roots of the rates in equal steps, as in latent diffusion."""
        roots = torch.linspace(beta_min**0.5, beta_max**0.5, steps, dtype=torch.float64)
        return cls(roots**2, **options)

    @property
    def t_min(self) -> float:
        return 1.0

    def alpha(self, t: Tensor) -> Tensor:
        knots = self.alphas.to(t.device)
        low = t.double().floor().clamp(0, len(knots) - 2).long()
        part = t.double() - low
        return (knots[low] * (1 - part) + knots[low + 1] * part).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.alpha(t.double()) ** 2).clamp(min=0).sqrt().to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        alpha = torch.sigmoid(log_snr.double()).sqrt()
        knots = self.alphas.to(log_snr.device)
        high = torch.searchsorted(-knots, -alpha.contiguous()).clamp(1, len(knots) - 1)
        part = (knots[high - 1] - alpha) / (knots[high - 1] - knots[high])
        return (high - 1 + part).to(log_snr.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        return t - 1

    def _strided(self, steps: int, spacing: Spacing) -> list[float]:
        if steps > self.t_max:
            raise ValueError(
                f"grid: steps must be at most {self.t_max:g}, the chain's length, got {steps}"
            )
        stride = self.t_max / steps
        if spacing == "leading":
            return [float(int(stride) * i + 1) for i in reversed(range(steps))] + [0.0]
        return [float(round(self.t_max - i * stride)) for i in range(steps)] + [0.0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiscreteVP) and torch.equal(self.alphas, other.alphas)

    def __hash__(self) -> int:
        return hash((len(self.alphas), self.alphas.sum().item()))

    def __repr__(self) -> str:
        return f"DiscreteVP(steps={len(self.alphas) - 1})"


def rescale_zero_terminal_snr(alpha: Tensor) -> Tensor:
    """Shifts and scales `alpha = sqrt(alpha_bar)` so that the last is 0 and the first stays.

    Shapes: `(T,)` to `(T,)`. Applying it twice changes nothing.
    Source: Lin et al. (2023), arXiv:2305.08891, algorithm 1.
    """
    first, last = alpha[0], alpha[-1]
    rescaled = (alpha - last) * (first / (first - last))
    rescaled[0], rescaled[-1] = first, 0.0
    return rescaled
