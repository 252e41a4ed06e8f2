"""Layers by name pattern."""

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def match_layers(owner: str, patterns: str | tuple[str, ...], layers: Mapping[str, T]) -> list[T]:
    """The layers that patterns name: whole dotted components, `*` for any one component.

    `blocks.1` names `blocks.1` and `blocks.1.attn`, but not `blocks.10`.

    Args:
        owner: Who asks, for the error.
        patterns: Patterns, or one text with commas between them.
        layers: What exists, by name.

    Raises:
        ValueError: A pattern names nothing; lists what exists.
    """
    if isinstance(patterns, str):
        patterns = tuple(p.strip() for p in patterns.split(","))
    found: dict[str, T] = {}
    for pattern in patterns:
        parts = (re.escape(p).replace(r"\*", r"[^.]+") for p in pattern.split("."))
        regex = re.compile(r"\.".join(parts) + r"(\.|$)")
        hits = {name: layer for name, layer in layers.items() if regex.match(name)}
        if not hits:
            known = ", ".join(layers) or "none"
            raise ValueError(
                f"{owner}: no attention layer matches {pattern!r}; the network has: {known}"
            )
        found |= hits
    return list(found.values())
