"""Energies: what a sample is judged by, lower is better."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fairlead.parameters import nearest
from fairlead.schedules import Level

CLEAN = Level(0.0, 1.0, 0.0)


class Energy(ABC):
    r"""A judge of samples: `energy(z, level) -> (B,)`, minus a log-probability up to a constant.

    Guides take an energy by its name, so that they have a text form: the guide carries a
    given energy along, and the text `dps('linear')` finds it in
    `fl.sample(energies={"linear": energy})`.
    `a + b` and `0.5 * a` are energies again.

    Attributes:
        name: How guides and errors call it.
        noisy: Whether it judges noisy samples at their level (then no network call lies between
            it and `x`), or clean estimates, whatever the level.
        attention: Whether it judges attention maps instead of samples: `energy(maps)`, see
            `fl.energy.Boxes`.
    """

    name: str = "energy"
    noisy: bool = False
    attention: bool = False

    @abstractmethod
    def __call__(self, z: Any, level: Level = CLEAN) -> Tensor:
        """The energy of each sample, `(B, ...)` to `(B,)`, differentiable in `z`."""

    def named(self, name: str) -> Self:
        """A copy under another name."""
        twin = copy.copy(self)
        twin.name = name
        return twin

    def __add__(self, other: "Energy") -> "Energy":
        return Total((self, other)) if isinstance(other, Energy) else NotImplemented

    def __mul__(self, weight: float) -> "Energy":
        return Weighted(self, float(weight))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class Judge(Energy):
    """An energy from class log-probabilities: `-log p(label | z)`.

    Attributes:
        label: The class asked for: one for all samples, or `(B,)`.
    """

    label: int | Tensor

    @abstractmethod
    def log_probs(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        """`log p(k | z)` of every class, `(B, ...)` to `(B, K)`."""

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        return -pick(self.name, self.log_probs(z, level), self.label)

    def towards(self, label: int | Tensor | list[int]) -> Self:
        """The same judge asked for another class."""
        twin = copy.copy(self)
        twin.label = whole(self.name, label)
        return twin


def whole(owner: str, label: int | Tensor | list[int]) -> int | Tensor:
    """A class index, or one a sample.

    Raises:
        ValueError: It is no whole number, or below 0.
    """
    given = torch.as_tensor(label)
    if given.is_floating_point() or given.dtype == torch.bool or given.ndim > 1:
        raise ValueError(f"{owner}: label must be a whole number, or one a sample, got {label!r}")
    if bool((given < 0).any()):
        raise ValueError(f"{owner}: label must be at least 0, got {given.min().item()}")
    return given if given.ndim else int(given)


def pick(owner: str, table: Tensor, label: int | Tensor) -> Tensor:
    """The column of each row of a `(B, K)` table that a label names."""
    if table.ndim != 2:
        raise ValueError(f"{owner}: expected (B, classes), got {tuple(table.shape)}")
    index = torch.as_tensor(label, device=table.device)
    if int(index.max()) >= table.shape[1]:
        raise ValueError(
            f"{owner}: label must be in [0, {table.shape[1] - 1}], got {int(index.max())}"
        )
    if index.ndim and len(index) != len(table):
        raise ValueError(f"{owner}: {len(index)} labels were given for {len(table)} samples")
    return table.gather(1, index.expand(len(table))[:, None])[:, 0]


class Function(Energy):
    """Any function of a clean estimate, or of a noisy sample and its level, as an energy.

    Args:
        function: `(B, ...)` to `(B,)`, lower is better, differentiable; with `noisy` it is also
            given the `Level`.
        name: Name; default: the function's own.
        noisy: Whether it judges noisy samples.
        attention: Whether it judges attention maps: a mapping from the names of layers to
            `(B, frames, heads, h, w, tokens)`.

    Example:
        >>> import torch, fairlead as fl
        >>> dark = fl.energy.Function(lambda x0: x0.mean(1), name="dark")
        >>> str(fl.ClassifierGuidance(dark))
        "classifier_guidance('dark')"
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        name: str | None = None,
        *,
        noisy: bool = False,
        attention: bool = False,
    ) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", "function").strip("<>")
        self.noisy, self.attention = noisy, attention

    def __call__(self, z: Any, level: Level = CLEAN) -> Tensor:
        return self.function(z, level) if self.noisy else self.function(z)


class Total(Energy):
    """The sum of energies that judge the same kind of sample."""

    def __init__(self, parts: tuple[Energy, ...]) -> None:
        kinds = {(p.noisy, p.attention) for p in parts}
        if len(kinds) > 1:
            said = "noisy samples", "clean estimates"
            if len({p.attention for p in parts}) > 1:
                said = "attention maps", "samples"
            raise ValueError(
                f"energy: {' and '.join(p.name for p in parts)} cannot be added: one judges "
                f"{said[0]}, another {said[1]}; guide with two terms instead"
            )
        self.parts = parts
        self.noisy, self.attention = kinds.pop()
        self.name = "_".join(p.name for p in parts)

    def __call__(self, z: Any, level: Level = CLEAN) -> Tensor:
        total = self.parts[0](z, level)
        for part in self.parts[1:]:
            total = total + part(z, level)
        return total


class Weighted(Energy):
    """An energy times a number."""

    def __init__(self, energy: Energy, weight: float) -> None:
        self.energy, self.weight = energy, weight
        self.noisy, self.attention = energy.noisy, energy.attention
        self.name = energy.name

    def __call__(self, z: Any, level: Level = CLEAN) -> Tensor:
        return self.weight * self.energy(z, level)


class Carried(str):
    """The name of an energy that carries the energy along; equal to its name."""

    energy: Energy

    def __new__(cls, energy: Energy) -> "Carried":
        name = super().__new__(cls, energy.name)
        name.energy = energy
        return name

    def __reduce__(self) -> tuple[Any, ...]:
        return Carried, (self.energy,)


def of(owner: str, energy: Any) -> str:
    """The name by which a guide keeps an energy: text, an energy or a function of clean samples.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(energy, str):
        return energy
    if isinstance(energy, Energy):
        return Carried(energy)
    if callable(energy):
        return Carried(Function(energy))
    raise TypeError(
        f"{owner}: energy must be an energy of fl.energy, a function of a clean estimate, or the "
        f"name of one given to fl.sample(energies=...), got {energy!r}"
    )


def find(owner: str, name: str, energies: Mapping[str, Any]) -> Energy:
    """The energy of a name: among the given ones, else what the name carries.

    Raises:
        ValueError: There is none.
    """
    if name in energies:
        found = of(owner, energies[name])
        if isinstance(found, Carried):
            return found.energy
        raise ValueError(f"{owner}: the energy {name!r} is text, {found!r}; give the energy itself")
    if isinstance(name, Carried):
        return name.energy
    raise ValueError(
        f"{owner}: the guide asks for the energy {name!r}: pass energies={{{name!r}: ...}} to "
        f"fl.sample or fl.steer; {nearest(name, energies)}"
    )
