"""Methods that are no part of a guide: recipes, which build one, and tools, which stand beside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fairlead.parameters import choose

RECIPES: dict[str, Callable[..., Any]] = {}
"""Every recipe by name."""

IDS: dict[str, tuple[str, ...]] = {}
"""Ids of the papers that a recipe follows, by its name."""

DOMAINS: dict[str, frozenset[str]] = {}
"""Domains that a recipe's guide serves, by its name."""


@dataclass(frozen=True)
class Tool:
    """A loss, a metric or a constraint, with its row in `fairlead methods`."""

    made: Any
    ids: tuple[str, ...]
    kind: str
    domains: frozenset[str]


TOOLS: dict[str, Tool] = {}
"""Every tool by name."""

TOOL_KINDS = ("loss", "metric", "constraint")
"""What tools are."""

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


def tool(
    name: str, *, ids: tuple[str, ...], kind: str, domains: frozenset[str]
) -> Callable[[F], F]:
    """Decorator: gives a loss, a metric or a constraint its row in `fairlead methods`.

    Args:
        name: Its name in the table.
        ids: Ids of the papers it follows.
        kind: One of `TOOL_KINDS`.
        domains: Domains that it is meant for.

    Raises:
        ValueError: The name is taken, or the kind unknown.
    """
    choose("tool", "kind", kind, TOOL_KINDS)

    def enter(made: F) -> F:
        if name in TOOLS:
            raise ValueError(f"tool: {name!r} is taken by {TOOLS[name].made.__module__}")
        TOOLS[name] = Tool(made, ids, kind, domains)
        return made

    return enter
