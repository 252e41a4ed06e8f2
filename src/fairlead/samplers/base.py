"""What a sampler is: an update rule from one noise level to the next, with a name and a text form.

Along any schedule the probability-flow ODE reads `dx = D dalpha + eps dsigma` with
`eps = (x - alpha D) / sigma`, so one form of each solver serves variance-preserving,
variance-exploding and straight paths alike. Solvers that walk in `lam = log(alpha/sigma)` take
`h = lam_t - lam_s`, which is infinite where `alpha_s = 0` or `sigma_t = 0`: they are of first
order there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import Tensor

from fairlead.energy.base import Energy
from fairlead.parameters import check_fields
from fairlead.prediction import Prediction
from fairlead.schedules import Level, NoiseSchedule
from fairlead.text import Reader


class Model(Protocol):
    """The guided model as a sampler sees it."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule that the levels come from, for solvers that need levels in between."""
        ...

    @property
    def step(self) -> int:
        """Index of the current step, from 0."""
        ...

    @property
    def steps(self) -> int:
        """Number of steps."""
        ...

    @property
    def levels(self) -> Sequence[Level]:
        """The levels of the run, `steps + 1` of them."""
        ...

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Masks by name, each broadcasts against the batch."""
        ...

    @property
    def reference(self) -> Tensor | None:
        """Clean samples given to the run, `(B, ...)`."""
        ...

    def revisit(self, step: int) -> AbstractContextManager[None]:
        """Inside, guides see an earlier step; noise is fresh all the same."""
        ...

    @property
    def memory(self) -> dict[str, Any]:
        """What a multistep solver keeps from step to step.

        It is emptied when a policy asks for it, so solvers treat an empty memory as their
        first step.
        """
        ...

    def __call__(self, x: Tensor, level: Level, *, gain: float = 1.0) -> Prediction:
        """Guided prediction at `x`; `gain` multiplies every `w - 1`, 0 is conditional."""
        ...

    def noise(self, x: Tensor) -> Tensor:
        """Standard normal noise like `x`; fresh at each call, fixed by seed and sample."""
        ...

    def enter(self, x: Tensor, level: Level) -> Tensor:
        """The sample as the step finds it, for guides that move it before each step."""
        ...

    @property
    def parts(self) -> list[tuple[float | Tensor, Tensor]]:
        """Coefficient and clean estimate of each branch of the last prediction; they sum to 1.

        Raises:
            ValueError: The guide is not affine in its branches.
        """
        ...

    def log_density(self, x: Tensor, level: Level) -> Tensor:
        """`log p(x)` of the guided density at a level up to a constant, `(B, ...)` to `(B,)`.

        Raises:
            ValueError: The guide is not affine in its branches, or the model knows no density.
        """
        ...

    @property
    def carried(self) -> dict[str, Tensor]:
        """What belongs to each sample, `(B, ...)`, and moves along with it."""
        ...

    @property
    def groups(self) -> Tensor:
        """Number of the group of each sample, `(B,)`: samples under equal conditions."""
        ...

    def take(self, index: Tensor) -> None:
        """Makes row `i` of all that is remembered that of sample `index[i]`."""
        ...

    def uniform(self, key: str, count: int = 1) -> Tensor:
        """Numbers in [0, 1), fixed by seed, step and key, `(count,)` in float64."""
        ...

    def reward(self, name: str) -> Callable[[Tensor], Tensor]:
        """The function given to `fl.sample(rewards=...)` by that name, `(B, ...)` to `(B,)`.

        Raises:
            ValueError: There is none.
        """
        ...

    def energy(self, name: str) -> Energy:
        """The energy given to `fl.sample(energies=...)` by that name.

        Raises:
            ValueError: There is none.
        """
        ...


class Sampler(ABC):
    """An update rule; an immutable value.

    Subclasses are frozen dataclasses registered with `@register`. `step` must accept a level
    `t` with `sigma = 0` (return the clean estimate, no further evaluation) and a level `s` with
    `alpha = 0`.
    """

    name: ClassVar[str] = ""
    ids: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "sampler"
    solver: ClassVar[bool] = True
    """Whether it asks the model for predictions and noise alone."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def order(self) -> int:
        """Order of convergence, of the deterministic part if noise is added."""
        return 1

    @property
    def evaluations(self) -> int:
        """Evaluations of the guided model a step; the last step may need fewer."""
        return 1

    @abstractmethod
    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""

    def walk(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """A step with what the guide does before it; samplers that repeat steps override it."""
        return self.step(model, model.enter(x, s), s, t)

    def check(self, model: Model) -> None:  # noqa: B027  most samplers ask for nothing
        """Refuses a model that lacks what the sampler will ask for, before the first step.

        Raises:
            ValueError: Names what is missing.
        """

    def __str__(self) -> str:
        given = [
            f"{f.name}={value!r}"
            for f in fields(self)  # type: ignore[arg-type]
            if f.default is MISSING or (value := getattr(self, f.name)) != f.default
        ]
        return f"{self.name}({', '.join(given)})" if given else self.name


SAMPLERS: dict[str, type[Sampler]] = {}
"""Every registered sampler by its name in text."""

S = TypeVar("S", bound=Sampler)


def register(name: str, ids: tuple[str, ...] = ()) -> Callable[[type[S]], type[S]]:
    """Class decorator: gives a sampler its name in text and its row in `fairlead methods`.

    Args:
        name: Name in text, lower case.
        ids: Ids of the papers it implements.

    Raises:
        ValueError: The name is taken.
    """

    def enter(cls: type[S]) -> type[S]:
        if name in SAMPLERS:
            raise ValueError(f"register: {name!r} is taken by {SAMPLERS[name].__name__}")
        cls.name, cls.ids = name, ids
        SAMPLERS[name] = cls
        return cls

    return enter


def get(sampler: "Sampler | str") -> Sampler:
    """A sampler from its name or text; samplers pass through.

    `get(str(s)) == s` holds for every sampler. Nothing is executed: arguments are literals.

    Raises:
        TextError: A `ValueError` that names the token, its position and the nearest name.
        TypeError: Neither a sampler nor text.

    Example:
        >>> get("ddim(eta=0.5)")
        DDIM(eta=0.5)
    """
    if isinstance(sampler, Sampler):
        return sampler
    if not isinstance(sampler, str):
        raise TypeError(f"sampler: expected a sampler or text, got {type(sampler).__name__}")
    reader = Reader("sampler", sampler)
    reader.name(reader.body, "a name such as heun or ddim(eta=0.5)")
    return cast(Sampler, reader.make(reader.body, SAMPLERS, SAMPLERS))


def noise_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise `(x - alpha x0) / sigma` that a clean estimate leaves in `x`."""
    return (x - level.alpha * x0) / level.sigma


def transfer(x: Tensor, p: Prediction, s: Level, t: Level) -> Tensor:
    """DDIM's exact step for a constant prediction: `alpha_t D + sigma_t eps`."""
    if t.sigma == 0:
        return t.alpha * p.denoise
    return t.alpha * p.denoise + t.sigma * noise_of(x, p.renoise, s)


def added_variance(s: Level, t: Level) -> float:
    """Variance that forward noising adds from `t` to `s`.

    `sigma_s^2 - (alpha_s/alpha_t)^2 sigma_t^2`: `beta` on a variance-preserving
    chain, the drop of `sigma^2` where `alpha = 1`.
    """
    return max(s.sigma**2 - (s.alpha / t.alpha * t.sigma) ** 2, 0.0)


def ancestral(s: Level, t: Level, eta: float) -> tuple[Level, float]:
    """Splits the noise at `t` into what a deterministic step keeps and what is drawn anew.

    `up = eta sigma_t sqrt(q) / sigma_s` with `q` the added variance: at `eta = 1` the standard
    deviation of `q(x_t | x_s, x0)`.

    Returns:
        The level `alpha_t, down = sqrt(sigma_t^2 - up^2)`, and `up`.
    """
    share = min(eta**2 * added_variance(s, t) / s.sigma**2, 1.0)
    return Level(t.t, t.alpha, t.sigma * math.sqrt(1 - share)), t.sigma * math.sqrt(share)
