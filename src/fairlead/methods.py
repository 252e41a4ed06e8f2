"""The table of methods: what `fairlead methods` prints and the docs show."""

import inspect
import textwrap
from typing import Any

from fairlead.discrete.sampler import TOKEN_SAMPLERS
from fairlead.guidance.algebra import REGISTRY
from fairlead.guidance.recipes import DOMAINS, IDS, RECIPES, TOOL_KINDS, TOOLS
from fairlead.samplers import SAMPLERS

KINDS = ("term", "rule", "schedule", "policy", "sampler", "token sampler", "recipe", *TOOL_KINDS)
"""Every kind, in the order of the table."""


def methods() -> list[dict[str, Any]]:
    """Every registered term, rule, schedule, policy, sampler, recipe and tool, by kind and name.

    Returns:
        One dictionary a method: `name`, as in text; `ids` of the papers; `kind`; `domains` it
        serves; `nfe`, the evaluations a step that it adds to the conditional one, for samplers
        the evaluations of the guided model a step, for recipes, which depend on their
        arguments, and tools `None`; `neutral`, arguments as text at which it changes nothing, or
        `None`; `source`; and `summary`, the first line of its docstring.

    Example:
        >>> next(m["neutral"] for m in methods() if m["name"] == "cfg")
        '1.0'
    """
    rows = [
        {
            "name": name,
            "ids": list(cls.ids),
            "kind": cls.kind,
            "domains": sorted(cls.domains),
            "nfe": cls.nfe,
            "neutral": cls.neutral,
            "source": section(cls, "Source"),
            "summary": summary(cls),
        }
        for name, cls in REGISTRY.items()
    ]
    rows += [
        {
            "name": name,
            "ids": list(cls.ids),
            "kind": cls.kind,
            "domains": ["continuous"],
            "nfe": cls().evaluations,
            "neutral": None,
            "source": section(cls, "Source"),
            "summary": summary(cls),
        }
        for name, cls in SAMPLERS.items()
    ]
    rows += [
        {
            "name": name,
            "ids": list(kind.ids),
            "kind": "token sampler",
            "domains": sorted({kind().domain(space) for space in kind.spaces}),
            "nfe": kind().evaluations,
            "neutral": None,
            "source": section(kind, "Source"),
            "summary": summary(kind),
        }
        for name, kind in TOKEN_SAMPLERS.items()
    ]
    rows += [
        {
            "name": name,
            "ids": list(IDS[name]),
            "kind": "recipe",
            "domains": sorted(DOMAINS[name]),
            "nfe": None,
            "neutral": None,
            "source": section(function, "Source"),
            "summary": summary(function),
        }
        for name, function in RECIPES.items()
    ]
    import fairlead.training  # noqa: F401  # enters its losses

    rows += [
        {
            "name": name,
            "ids": list(tool.ids),
            "kind": tool.kind,
            "domains": sorted(tool.domains),
            "nfe": None,
            "neutral": None,
            "source": section(tool.made, "Source"),
            "summary": summary(tool.made),
        }
        for name, tool in TOOLS.items()
    ]
    return sorted(rows, key=lambda row: (KINDS.index(row["kind"]), row["name"]))


def summary(owner: object) -> str:
    """The first line of the own docstring of a class or function."""
    return inspect.cleandoc(owner.__doc__ or "").partition("\n")[0]


def section(owner: object, title: str) -> str:
    """A section of an own Google docstring as one line; empty if there is none.

    Both `Title:` over indented lines and text behind `Title:` on its line are read.
    """
    lines = inspect.cleandoc(owner.__doc__ or "").splitlines()
    for i, line in enumerate(lines):
        if line.startswith(f"{title}:"):
            body = [line.removeprefix(f"{title}:")]
            for following in lines[i + 1 :]:
                if following and not following[0].isspace():
                    break
                body.append(following)
            return " ".join(textwrap.dedent("\n".join(body)).split())
    return ""
