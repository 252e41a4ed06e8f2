"""Parameters as data: ranges in annotations make the check, the error and the documentation."""

import difflib
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """An interval of the real line, for use in `Annotated`.

    Args:
        low: Lower end.
        high: Upper end.
        closed: Which ends belong to it.
    """

    low: float
    high: float
    closed: Literal["both", "left", "right", "neither"] = "both"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self.closed in ("both", "left") else value > self.low
        below = value <= self.high if self.closed in ("both", "right") else value < self.high
        return above and below

    def __str__(self) -> str:
        left = "[" if self.closed in ("both", "left") else "("
        right = "]" if self.closed in ("both", "right") else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}"


FINITE = Range(-math.inf, math.inf, closed="neither")


@cache
def ranges(cls: Any) -> dict[str, Range]:
    """The ranges that a class annotates its fields with, by name."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for part in _annotations(hint):
            found[name] = part
    return found


def _annotations(hint: Any) -> list[Range]:
    if get_origin(hint) is typing.Annotated:
        return [part for part in get_args(hint)[1:] if isinstance(part, Range)]
    return [found for part in get_args(hint) for found in _annotations(part)]


@cache
def _optional(cls: type) -> frozenset[str]:
    """The fields of a class that may be `None`."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return frozenset(name for name, hint in hints.items() if _admits_none(hint))


def _admits_none(hint: Any) -> bool:
    return hint is type(None) or any(_admits_none(part) for part in get_args(hint))


@cache
def _whole(cls: type) -> frozenset[str]:
    """The fields of a class that hold whole numbers."""
    return frozenset(name for name, hint in typing.get_type_hints(cls).items() if hint is int)


def title(owner: object) -> str:
    """How errors name an object: its registered name, else its class."""
    cls = owner if isinstance(owner, type) else type(owner)
    return getattr(cls, "name", None) or cls.__name__


def check_fields(owner: Any) -> None:
    """Checks each ranged field of a dataclass, also inside tuples.

    Raises:
        ValueError: A number is outside its range, or no whole number where one is asked for;
            names the owner, the field, the range and the value.
        TypeError: A ranged field holds no number.
    """
    cls: Any = type(owner)
    allowed = ranges(cls)
    for f in fields(owner):
        if f.name not in allowed:
            continue
        value = getattr(owner, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None and f.name in _optional(cls):
                continue
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                raise TypeError(f"{title(owner)}: {f.name} must be a number, got {number!r}")
            if f.name in _whole(cls) and not isinstance(number, int) and number == number:
                raise ValueError(f"{title(owner)}: {f.name} must be a whole number, got {number}")
            if number not in allowed[f.name]:
                raise ValueError(
                    f"{title(owner)}: {f.name} must be in {allowed[f.name]}, got {number}"
                )


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest of the known ones, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(names)}" if names else "there are none"


def choose(owner: str, parameter: str, value: Any, known: Iterable[str]) -> None:
    """Refuses a value that is none of the known names.

    Raises:
        ValueError: Names the owner, the parameter, the value and the nearest names.
    """
    names = tuple(known)
    if value not in names:
        raise ValueError(
            f"{owner}: {parameter} must be one of {', '.join(names)}, got {value!r}; "
            f"{nearest(value, names)}"
        )


def whole(owner: str, parameter: str, value: int | None, least: int = 1) -> int | None:
    """A whole number that may be absent.

    Raises:
        ValueError: It is no whole number, or too small.
    """
    known = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if value is None or known:
        return value
    raise ValueError(
        f"{owner}: {parameter} must be a whole number of at least {least}, got {value!r}"
    )
