"""What a sampler is: an update rule from one noise level to the next."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from fairlead.schedules import Level


class Prediction(NamedTuple):
    """A guided clean estimate with two ends, each `(B, ...)`; the same tensor unless a guide
    such as CFG++ says otherwise.

    Attributes:
        denoise: The estimate that the next sample moves to.
        renoise: The estimate whose noise is added back, and that solver histories keep.
    """

    denoise: Tensor
    renoise: Tensor


class Model(Protocol):
    """The guided model as a sampler sees it.

    Attributes:
        step: Index of the current step, from 0.
        steps: Number of steps.
        memory: What a multistep solver keeps from step to step. It is emptied when a policy
            asks for it, so solvers treat an empty memory as their first step.
    """

    step: int
    steps: int
    memory: dict[str, Any]

    def __call__(self, x: Tensor, level: Level, *, gain: float = 1.0) -> Prediction:
        """Guided prediction at `x`; `gain` multiplies every `w - 1`, 0 is conditional."""
        ...

    def noise(self, x: Tensor) -> Tensor:
        """Standard normal noise like `x`; fresh at each call, fixed by seed and sample."""
        ...


class Sampler(ABC):
    """An update rule; an immutable value.

    Subclasses are frozen dataclasses registered with `@register`. `step` must accept a level
    `t` with `sigma = 0` (return the clean estimate, no further evaluation) and a level `s` with
    `alpha = 0`.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "sampler"
    order: ClassVar[int] = 1
    """Order of convergence of the deterministic part."""
    evaluations: ClassVar[int] = 1
    """Evaluations of the guided model a step; the last step may need fewer."""

    @abstractmethod
    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""


def noise_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise `(x - alpha x0) / sigma` that a clean estimate leaves in `x`."""
    return (x - level.alpha * x0) / level.sigma


def transfer(x: Tensor, p: Prediction, s: Level, t: Level) -> Tensor:
    """DDIM's exact step for a constant prediction: `alpha_t D + sigma_t eps`."""
    if t.sigma == 0:
        return t.alpha * p.denoise
    return t.alpha * p.denoise + t.sigma * noise_of(x, p.renoise, s)
