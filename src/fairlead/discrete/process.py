"""Corruption of tokens over time: masked, uniform, and both."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.guidance.domains import FLOOR
from fairlead.parameters import Range, check_fields, choose
from fairlead.schedules import Level, NoiseSchedule, Spacing

EPS = 1e-3

Form = Literal["joint", "mixture"]
FORMS = ("joint", "mixture")


@dataclass(frozen=True)
class Transition(Level):
    """A level of tokens, and the less noisy one that a step goes to.

    Attributes:
        to: Where the step ends; `None` where no step is under way.
    """

    to: Level | None = None


def transition(s: Level, t: Level) -> Transition:
    """The level `s` on the way to `t`."""
    return Transition(s.t, s.alpha, s.sigma, s.network_time, t)


@dataclass(frozen=True)
class Process(NoiseSchedule):
    r"""Tokens that are replaced independently, by the mask or by a uniformly drawn one.

    With ``a_t`` the probability of a clean token, ``c_t`` that of the mask and
    ``b_t = (1 - a_t - c_t) / K`` that of each other token,

    .. math:: q(z_t = k \mid x) = a_t 1[k = x] + b_t, \qquad q(z_t = m \mid x) = c_t .

    Unless a subclass says otherwise ``a_t = 1 - (1 - eps) t`` for `t` in [0, 1]. As a noise
    schedule its signal is ``a_t`` and its noise ``1 - a_t``.

    Args:
        tokens: Number `K` of clean token values.
        eps: Share of clean tokens that is left at `t = 1`; 0 gives `a_t = 1 - t`.

    Shapes: times `(B,)`, tokens `(B, L)`.
    """

    name: ClassVar[str] = ""
    form: ClassVar[Form] = "joint"
    leave_one_out: ClassVar[bool] = False
    """Whether networks predict `p(x | z_others)` at each position, and not `p(x | z)`."""
    space: ClassVar[str] = "clean"
    points: ClassVar[bool] = False
    """Whether noisy sequences are points of the simplex, `(B, L, K)`, and not tokens."""

    tokens: Annotated[int, Range(1, float("inf"))]
    eps: Annotated[float, Range(0, 1, closed="left")] = EPS

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "t_max", 1.0)

    @property
    def size(self) -> int:
        """Number of token values of a noisy sequence."""
        return self.tokens

    @property
    def mask(self) -> int | None:
        """Index of the mask token, if there is one."""
        return None

    def a(self, t: Any) -> Any:
        """Probability that a token is still clean."""
        return 1 - (1 - self.eps) * t

    def c(self, t: Any) -> Any:
        """Probability that a token is the mask."""
        return 0.0 * t

    def alpha(self, t: Tensor) -> Tensor:
        value: Tensor = self.a(t)
        return value

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - self.alpha(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return (1 - torch.sigmoid(log_snr / 2)) / (1 - self.eps)

    def grid(self, steps: int, spacing: Spacing | None = None, **options: Any) -> list[Level]:
        """The `steps + 1` levels from `t = 1` to clean tokens, in equal steps of `t`.

        Raises:
            ValueError: `steps` is below 1, or another spacing is asked for.
        """
        if steps < 1:
            raise ValueError(f"grid: steps must be at least 1, got {steps}")
        choose("grid", "spacing", spacing or "uniform", ("uniform", "trailing"))
        return [self.level(1 - i / steps) for i in range(steps + 1)]

    def corrupt(self, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noisy tokens at times `(B,)`, drawn on the CPU."""
        clean = torch.rand(x.shape, generator=generator) < self.a(t)[:, None]
        return torch.where(clean, x, self.draw(x.shape, generator))

    def prior(self) -> Tensor:
        """Probabilities of a token of pure noise, `(size,)` in float64."""
        return torch.full((self.size,), 1 / self.size, dtype=torch.float64)

    def from_network(self, time: float) -> float:
        """The time of a level from the time that networks are given."""
        return time

    def likelihood(self, z: Tensor, t: float) -> Tensor:
        """`q(z_t | x = k)` for every clean token, `(..., K)` in float64.

        `z` holds tokens `(...)`, or weights on them `(..., size)`, in which it is linear.
        """
        a, c = float(self.a(t)), float(self.c(t))
        table = a * torch.eye(self.tokens, dtype=torch.float64) + (1 - a - c) / self.tokens
        if self.mask is not None:
            table = torch.cat([table, torch.full((self.tokens, 1), c, dtype=torch.float64)], 1)
        table = table.to(z.device)
        return z.double() @ table.T if z.is_floating_point() else table.T[z]

    def log_posterior(
        self, log_x: Tensor, z: Tensor, s: Level, t: Level, form: Form | None = None
    ) -> Tensor:
        r"""`log p(z_t | z_s)` from a prediction of the clean tokens, at a less noisy level `t`.

        With ``Q`` the transition from `t` to `s` and ``Qbar`` the corruption from clean tokens,

        .. math::
            \text{joint:} \quad p(j) \propto Q[j, i] (x_\theta \bar Q_t)[j], \qquad
            \text{mixture:} \quad p(j) = \sum_k x_\theta(k)
                \frac{Q[j, i] \bar Q_t[k, j]}{\bar Q_s[k, i]} .

        They agree where tokens are only masked. The mixture is exact for ``p(x | z_s)``, the
        joint form for the leave-one-out posterior ``p(x | z_s^{others})``.

        Args:
            log_x: `(B, L, K)`; need not add up to 1.
            z: Tokens at `s`, `(B, L)`.
            s: The noisier level.
            t: The less noisy level.
            form: `joint` or `mixture`; default: the process's own.

        Returns:
            `(B, L, size)` in float64, not normalised where `log_x` is not.

        Source:
            Austin et al. (2021), arXiv:2107.03006.
        """
        k, x = self.tokens, log_x.double().exp()
        a_s, a_t, c_s, c_t = (float(f(v.t)) for f in (self.a, self.c) for v in (s, t))
        b_s, b_t = _rest(a_s + c_s) / k, _rest(a_t + c_t) / k
        kept = a_s / a_t
        masked = 1 - (1 - c_s) / (1 - c_t) if c_t < 1 else 0.0
        other = _rest(kept + masked) / k
        at = F.one_hot(z, self.size).to(x)
        here, hidden = at[..., :k], at[..., k:].sum(-1, keepdim=True)  # hidden: is it the mask
        back = kept * here + (1 - hidden) * other + hidden * masked
        if (form or self.form) == "joint":
            p = back * (a_t * x + b_t * x.sum(-1, keepdim=True))
            total = x.sum(-1, keepdim=True)
        else:
            seen = here * a_s + (1 - hidden) * b_s + hidden * c_s
            g = torch.where(seen > 0, x / seen.clamp(min=1e-300), 0.0)
            if b_s == 0:  # a token that shows has no other past
                g = g * hidden + (1 - hidden) * here / max(a_s, 1e-300)
            total = g.sum(-1, keepdim=True)
            p = back * (a_t * g + b_t * total)
        if self.mask is not None:
            stays = c_t * total * hidden  # no token that shows was masked before
            if (form or self.form) == "joint" and b_s == 0:
                p = p * hidden + (1 - hidden) * here
            p = torch.cat([p, stays], -1)
        if (form or self.form) == "joint":
            p = p / p.sum(-1, keepdim=True).clamp(min=1e-300)
        return p.clamp(min=1e-300).log().masked_fill(p <= 1e-300, FLOOR)

    def log_rates(self, log_x: Tensor, z: Tensor, s: Level) -> Tensor:
        """Log rates of jumping from the tokens at `s`, without the factor of time.

        Args:
            log_x: `(B, L, K)`, what the network predicts.
            z: Tokens, `(B, L)`.
            s: Their level.

        Returns:
            `(B, L, size)` in float64: `log p(x | z)`, of the token itself too, which stands for
            staying; and 0 for the mask where a token shows.

        Raises:
            ValueError: The process both masks and redraws.
        """
        hidden = z == self.mask if self.mask is not None else None
        if hidden is None:  # from the leave-one-out posterior to p(x | z)
            full = torch.log_softmax(log_x + self.likelihood(z, s.t).clamp(min=1e-300).log(), -1)
            return full.clamp(min=FLOOR)
        if _rest(float(self.a(s.t)) + float(self.c(s.t))):
            raise ValueError(f"{self.name}: a process that masks and redraws has no rates here")
        back = torch.where(hidden, FLOOR, 0.0)[..., None].to(log_x)
        return torch.cat([log_x.masked_fill(~hidden[..., None], FLOOR), back], -1)

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Tokens of pure noise."""

    @abstractmethod
    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Continuous-time bound on the negative log-likelihood of each position, in nats.

        Shapes: logits `(B, L, K)`, clean `x` and noisy `z` `(B, L)`, times `(B,)`; to `(B, L)`.
        """


def _rest(share: float) -> float:
    """What is left of 1, without rounding errors."""
    return 1 - share if 1 - share > 1e-12 else 0.0


@dataclass(frozen=True)
class Masked(Process):
    r"""Tokens become the mask, of index `K`, and stay it (MDLM): ``c_t = 1 - a_t``.

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

    def c(self, t: Any) -> Any:
        return 1 - self.a(t)

    def prior(self) -> Tensor:
        return F.one_hot(torch.tensor(self.tokens), self.size).double()

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return torch.full(shape, self.tokens)

    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        surprise = F.cross_entropy(logits.float().transpose(1, 2), x, reduction="none")
        weight = (1 - self.eps) / (1 - self.a(t))
        return torch.where(z == self.tokens, surprise * weight[:, None], 0.0)


@dataclass(frozen=True)
class Uniform(Process):
    r"""Tokens become a uniformly drawn one (UDLM): ``c_t = 0``.

    Networks predict the leave-one-out posterior, so that the joint form of the posterior is
    exact, and guidance tempers the posterior. With ``i = z_t``,
    ``xb = K a_t onehot(x) + 1 - a_t`` and ``xbt = K a_t x_theta + 1 - a_t``, the loss is

    .. math::
        \frac{a'_t}{K a_t} \Bigl( \frac{K}{xb_i} - \frac{K}{xbt_i}
        - \sum_j \frac{xb_j}{xb_i} \log \frac{xbt_i \, xb_j}{xbt_j \, xb_i} \Bigr) .

    Source:
        Schiff et al. (2024), arXiv:2412.10193.
    """

    name: ClassVar[str] = "uniform"
    space: ClassVar[str] = "posterior"
    leave_one_out: ClassVar[bool] = True

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(self.tokens, shape, generator=generator)

    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        k, a = self.tokens, self.a(t)[:, None, None]
        wide = logits.double() if logits.dtype == torch.float64 else logits.float()
        true = F.one_hot(x, k).to(wide.dtype) * k * a + 1 - a
        ours = wide.softmax(-1) * k * a + 1 - a
        true_i, ours_i = (v.gather(-1, z[..., None]) for v in (true, ours))
        ratio = true / true_i * (ours_i.log() + true.log() - ours.log() - true_i.log())
        inside = k / true_i - k / ours_i - ratio.sum(-1, keepdim=True)
        bound: Tensor = (-(1 - self.eps) / (k * a) * inside).squeeze(-1)
        return bound


@dataclass(frozen=True)
class MaskedUniform(Process):
    r"""Tokens are kept, masked or drawn anew, on the schedule of VQ-Diffusion.

    In step `i = 1..T`, at `t = i / T`, ``a`` falls in equal steps from 0.99999 to 0.000009 and
    ``c`` climbs from 0.000009 to 0.99999. Networks predict ``p(x | z_t)``, for which the mixture
    form of the posterior is exact.

    Args:
        tokens: Number `K` of clean token values.
        eps: Not used; the schedule has its own ends.
        steps: Number `T` of steps of the schedule, >= 2.

    Source:
        Gu et al. (2022), arXiv:2111.14822; as used in arXiv:2205.16007.
    """

    name: ClassVar[str] = "masked-uniform"
    form: ClassVar[Form] = "mixture"

    steps: Annotated[int, Range(2, math.inf, closed="left")] = 100

    @property
    def size(self) -> int:
        return self.tokens + 1

    @property
    def mask(self) -> int:
        return self.tokens

    def a(self, t: Any) -> Any:
        return self._line(t, 0.99999, 0.000009, 1.0)

    def c(self, t: Any) -> Any:
        return self._line(t, 0.000009, 0.99999, 0.0)

    def _line(self, t: Any, first: float, last: float, clean: float) -> Any:
        index = t * self.steps - 1
        value = first + (last - first) * index / (self.steps - 1)
        if isinstance(t, Tensor):
            return torch.where(t <= 0, clean, value.clamp(0, 1))
        return clean if t <= 0 else min(max(value, 0.0), 1.0)

    def time(self, log_snr: Tensor) -> Tensor:
        a = torch.sigmoid(log_snr / 2)
        return (1 + (0.99999 - a) / (0.99999 - 0.000009) * (self.steps - 1)) / self.steps

    def prior(self) -> Tensor:
        return F.one_hot(torch.tensor(self.tokens), self.size).double()

    def corrupt(self, x: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(x.shape, generator=generator)
        a, c = self.a(t)[:, None], self.c(t)[:, None]
        drawn = torch.randint(self.tokens, x.shape, generator=generator)
        return torch.where(u < a, x, torch.where(u < a + c, self.tokens, drawn))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return torch.full(shape, self.tokens)

    def loss(self, logits: Tensor, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Cross-entropy of the clean token, the auxiliary loss of D3PM, without a weight."""
        return F.cross_entropy(logits.float().transpose(1, 2), x, reduction="none")


PROCESSES: dict[str, type[Process]] = {
    "masked": Masked,
    "uniform": Uniform,
    "masked-uniform": MaskedUniform,
}
