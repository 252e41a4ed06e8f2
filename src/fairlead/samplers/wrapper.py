"""Samplers that own the step of another sampler."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from fairlead.prediction import Prediction
from fairlead.samplers.base import Model, Sampler, get
from fairlead.schedules import Level


@dataclass(frozen=True)
class Wrapper(Sampler):
    """Does something before, between or after the steps of the sampler that `sampler` names."""

    solver: ClassVar[bool] = False

    @cached_property
    def inner(self) -> Sampler:
        """The sampler whose step it owns; from the field `sampler`.

        Raises:
            ValueError: There is no such sampler, or it wraps one itself.
        """
        inner = get(self.sampler)  # type: ignore[attr-defined]
        if isinstance(inner, Wrapper):
            raise ValueError(f"{self.name}: sampler must be a plain solver, got {inner}")
        return inner

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inner  # noqa: B018  refuses a bad name now

    def check(self, model: Model) -> None:
        self.inner.check(model)


class Held:
    """A model that knows its prediction at one point already."""

    def __init__(self, model: Model, x: Tensor, level: Level, prediction: Prediction) -> None:
        self._model, self._at, self._prediction = model, (x, level), prediction

    def __call__(self, x: Tensor, level: Level, *, gain: float = 1.0) -> Prediction:
        known, at = self._at
        if x is known and level is at and gain == 1.0:
            return self._prediction
        return self._model(x, level, gain=gain)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
