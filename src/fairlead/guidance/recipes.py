"""Recipes: functions that build a guide, or the stages of a run, under the name of a paper."""

from collections.abc import Callable
from typing import Any, TypeVar

RECIPES: dict[str, Callable[..., Any]] = {}
"""Every recipe by name."""

IDS: dict[str, tuple[str, ...]] = {}
"""Ids of the papers that a recipe follows, by its name."""

DOMAINS: dict[str, frozenset[str]] = {}
"""Domains that a recipe's guide serves, by its name."""

F = TypeVar("F", bound=Callable[..., Any])


def recipe(
    ids: tuple[str, ...], *, domains: frozenset[str] = frozenset({"continuous"})
) -> Callable[[F], F]:
    """Decorator: gives a function its row in `fairlead methods`, under its own name.

    Args:
        ids: Ids of the papers it follows.
        domains: Domains that it is meant for.

    Raises:
        ValueError: The name is taken.
    """

    def enter(function: F) -> F:
        name = function.__name__
        if name in RECIPES:
            raise ValueError(f"recipe: {name!r} is taken by {RECIPES[name].__module__}")
        RECIPES[name], IDS[name], DOMAINS[name] = function, ids, domains
        return function

    return enter
