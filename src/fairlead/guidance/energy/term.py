"""What terms share that add the gradient of an energy instead of a difference of branches."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fairlead.energy.base import Energy, of
from fairlead.guidance.algebra import Context, Difference, Gains, Place, Predictions, Term
from fairlead.guidance.branch import COND, NULL, Branch
from fairlead.guidance.context import Weight, magnitude
from fairlead.schedules import Level

EnergyLike = str | Energy | Callable[..., Tensor]
"""A name, an energy, or a function of a clean estimate."""


@dataclass(frozen=True)
class GradientTerm(Term):
    """A weight times a shift of the clean estimate that follows an energy.

    Subclasses say `strength` and `shift`. The shift is one of x0 units whatever the method's own
    space is: a score `k g` is the shift `k (sigma^2 / alpha) g`, and `v` added to the next sample
    is `v / alpha_next` of the `denoise` end alone (`apart`), since every sampler adds
    `alpha_next * denoise`.

    Attributes:
        energy: Name of the energy; one that was given as a value is carried along.
        wants: Kind of energy that it takes: `clean`, `noisy`, `judge`, or `any` of these.
    """

    affine: ClassVar[bool] = False
    gradient: ClassVar[bool] = True
    wants: ClassVar[str] = "clean"

    energy: EnergyLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", of(self.name, self.energy))
        super().__post_init__()

    @property
    def energies(self) -> tuple[str, ...]:
        """Names of the energies that it asks for."""
        return (cast(str, self.energy),)

    def suits(self, energy: Energy) -> None:
        """Refuses an energy of the wrong kind.

        Raises:
            ValueError: Names the energy and the kind that is needed.
        """
        if energy.attention:
            raise ValueError(
                f"{self.name}: the energy {energy.name!r} judges attention maps, which this guide "
                "does not read; use fl.Layout"
            )
        if self.wants == "judge" and not hasattr(energy, "log_probs"):
            raise ValueError(
                f"{self.name}: the energy {energy.name!r} has no class log-probabilities; give "
                "fl.energy.Classifier or fl.energy.ClosedFormJudge"
            )
        if self.wants == "clean" and energy.noisy:
            raise ValueError(
                f"{self.name}: the energy {energy.name!r} judges noisy samples, but clean "
                "estimates are what this guide shows it; use fl.ClassifierGuidance"
            )

    @property
    def apart(self) -> bool:
        """Whether it moves the `denoise` end alone."""
        return True

    def differentiates(self, ctx: Context) -> bool:
        """Whether the network lies between the energy and `x`."""
        return False

    @cached_property
    def clean(self) -> Branch:
        """The branch whose clean estimate the energy sees."""
        state = getattr(self, "branch", "cond")
        return {"cond": COND, "null": NULL}.get(state) or Branch(state, state=state)

    @property
    def negative(self) -> Branch:
        return self.clean

    @property
    def differences(self) -> tuple[Difference, ...]:
        return ()

    def differences_at(self, ctx: Context) -> tuple[Difference, ...]:
        return ()

    @property
    def looks(self) -> tuple[Branch, ...]:
        return () if self.strength == 0.0 else (self.clean,)

    @abstractmethod
    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        """What is added to the clean estimate at unit weight, `(B, ...)`."""

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        super().plan(ctx, gains, gain, place)
        weight = self.weigh(self.strength_at(ctx), ctx, gains, gain)
        if isinstance(weight, float) and weight == 0.0:
            return
        branch = self.seen(self.clean, ctx, gains)
        ctx.plan.terms.setdefault(place, [])
        ctx.plan.gradients[place] = (weight, branch)
        ctx.plan.affine = False
        ctx.plan.look_at(branch)
        if self.differentiates(ctx):
            ctx.plan.through.add(branch)
        if self.apart:
            ctx.plan.apart = True

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        update, total = super().update(predictions, ctx, place)
        if place not in ctx.plan.gradients or (self.apart and ctx.renoising):
            return update, total
        weight, branch = ctx.plan.gradients[place]
        if place not in ctx.memo:  # both ends of a prediction ask for it
            ctx.place = place
            ctx.memo[place] = self.shift(branch, predictions, ctx) * weight
        shift = ctx.memo[place]
        if ctx.run.report.record and not ctx.renoising:
            ctx.run.report.norm(self.label, shift)
        return shift if update is None else update + shift, total + magnitude(weight)

    def log_f(self, z: Tensor, ctx: Context, draws: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`log f(z) = -E(z)`, `(B,)`, and its gradient, `(B, ...)`; see `ascent`."""
        return ascent(self.name, self.energies[0], z, ctx, draws)


def ascent(
    owner: str, name: str, z: Tensor, ctx: Context, draws: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """`log f = -E` of each sample and its gradient.

    Args:
        owner: Who asks, for errors.
        name: Name of the energy.
        z: Where, `(B, ...)`: clean estimates, or `x` for an energy that judges noisy samples.
        ctx: The evaluation.
        draws: Offsets of `z`: then `log f` is the log of the mean of `exp(-E)` over them.

    Raises:
        ValueError: The energy is not `(B,)`, or cannot be differentiated.
        FloatingPointError: The energy or its gradient is NaN or infinite.
    """
    energy = ctx.run.energy(owner, name)
    at = place_of(ctx)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        points = [leaf + d for d in draws] or [leaf]
        values = [-measured(energy, point, ctx.level, at) for point in points]
        value = torch.stack(values).logsumexp(0) - math.log(len(values))
        if len(values) == 1:
            value = values[0]
        gradient = differentiated(energy, value, leaf, ctx)
    ctx.run.report.gradients += len(points)
    return value.detach().to(z.dtype), gradient


def differentiated(energy: Energy, value: Tensor, leaf: Tensor, ctx: Context) -> Tensor:
    """The gradient in a leaf of an energy's values, `(B,)`.

    Raises:
        ValueError: There is no graph between them.
        FloatingPointError: A value or the gradient is NaN or infinite, and the leaf is not.
    """
    if not value.requires_grad:
        raise ValueError(
            f"energy {energy.name!r} has no gradient {place_of(ctx)}: it must be computed from "
            "its argument by differentiable operations, without detach or torch.no_grad"
        )
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    if ctx.run.check:
        finite = bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
        if not finite and bool(torch.isfinite(leaf).all()):  # else the prediction is to blame
            what = "value" if not bool(torch.isfinite(value).all()) else "gradient"
            raise FloatingPointError(
                f"the {what} of energy {energy.name!r} is NaN or infinite {place_of(ctx)}; "
                "pass check=False to go on all the same"
            )
    return gradient


def place_of(ctx: Context) -> str:
    """Where a run is, for errors."""
    return f"at step {ctx.run.step} (stage {ctx.run.stage})"


def measured(energy: Energy, z: Any, level: Level, at: str, count: int | None = None) -> Tensor:
    """An energy, checked to be one number a sample; `count` samples, where `z` is no batch."""
    value: Any = energy(z, level)
    size = len(z) if count is None else count
    if not isinstance(value, Tensor) or value.shape != (size,):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value))
        raise ValueError(
            f"energy {energy.name!r} must return one number a sample, shape ({size},), got "
            f"{got} {at}"
        )
    return value


class Adam:
    """Steps up a gradient by Adam, about 1 long in each number whatever the gradient's scale."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        """The next step; gradients come one after another."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        size = (self.second / (1 - 0.999**self.count)).sqrt() + 1e-8
        step: Tensor = self.first / (1 - 0.9**self.count) / size
        return step


def score_shift(g: Tensor, ctx: Context) -> Tensor:
    """The shift of the clean estimate that adds `g` to the score; none where `alpha = 0`."""
    alpha, sigma = ctx.alpha, ctx.sigma
    if isinstance(alpha, Tensor):
        return torch.where(alpha > 0, sigma**2 / alpha.clamp(min=1e-30), 0.0) * g
    return g * (sigma**2 / alpha) if alpha else torch.zeros_like(g)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """`(B,)` as a tensor that broadcasts against `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def signal(level: Level) -> float:
    """`alpha / sqrt(alpha^2 + sigma^2)`: the signal level of the variance-preserving path."""
    unit: float = (level.alpha**2 + level.sigma**2) ** 0.5
    return level.alpha / unit


def ratio(s: Level, t: Level) -> float:
    """`r = A_s / A_t` of a step, with `A` the squared signal level: DDPM's one-step alpha."""
    return (signal(s) / signal(t)) ** 2
