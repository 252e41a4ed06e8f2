"""Layers by name pattern, and the residual blocks of a network."""

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from fairlead.attention import find_attention

T = TypeVar("T")


def match_layers(
    owner: str,
    patterns: str | tuple[str, ...],
    layers: Mapping[str, T],
    what: str = "attention layer",
) -> list[T]:
    """The layers that patterns name: whole dotted components, from the left.

    ``*`` stands for any one component, or for a part of one, ``**`` for any number of components:
    ``blocks.1`` names ``blocks.1`` and ``blocks.1.attn`` but not ``blocks.10``, and ``**.attn1``
    every ``attn1``. The stages of diffusers' networks may drop what says nothing: ``mid`` is
    ``mid_block``, ``down`` and ``up`` are ``down_blocks`` and ``up_blocks``, ``blocks`` is
    ``transformer_blocks``, ``single`` is ``single_transformer_blocks``.

    Args:
        owner: Who asks, for the error.
        patterns: Patterns, or one text with commas between them.
        layers: What exists, by name.
        what: What the layers are, for the error.

    Raises:
        ValueError: A pattern names nothing; lists what exists.
    """
    if isinstance(patterns, str):
        patterns = tuple(p.strip() for p in patterns.split(","))
    found: dict[str, T] = {}
    for pattern in patterns:
        regex = re.compile(_regex(pattern))
        hits = {
            name: layer
            for name, layer in layers.items()
            if regex.match(name) or regex.match(_short(name))
        }
        if not hits:
            known = ", ".join(layers) or "none"
            raise ValueError(f"{owner}: no {what} matches {pattern!r}; the network has: {known}")
        found |= hits
    return list(found.values())


def find_blocks(network: object) -> dict[str, nn.Module]:
    """The blocks of a network that add to what they are given, by name.

    What it lists itself as `residual_blocks` counts alone; else they are the innermost elements
    of its module lists that hold attention.
    """
    listed = getattr(network, "residual_blocks", None)
    if listed is not None:
        return dict(listed)
    if not isinstance(network, nn.Module):
        return {}
    modules = dict(network.named_modules())
    found: dict[str, nn.Module] = {}
    for attention in find_attention(network):
        name = attention
        while name and not isinstance(modules[name.rpartition(".")[0]], nn.ModuleList):
            name = name.rpartition(".")[0]
        if name:
            found[name] = modules[name]
    return found


def with_parameters(network: object, module: nn.Module) -> nn.Module:
    """The module, or the nearest one around it that has parameters: attention and its projections.

    Args:
        network: What holds the module; one that is no module has none around it.
        module: An attention layer's module.
    """
    if next(module.parameters(), None) is not None or not isinstance(network, nn.Module):
        return module
    name = {m: n for n, m in network.named_modules()}[module]
    while "." in name:
        name = name.rpartition(".")[0]
        outer = network.get_submodule(name)
        if next(outer.parameters(), None) is not None:
            return outer
    return module


_SHORT = {
    "mid_block": "mid",
    "down_blocks": "down",
    "up_blocks": "up",
    "transformer_blocks": "blocks",
    "single_transformer_blocks": "single",
}


def _short(name: str) -> str:
    first, dot, rest = name.partition(".")
    return _SHORT.get(first, first) + dot + rest


def _regex(pattern: str) -> str:
    text = re.escape(pattern).replace(r"\*\*\.", r"(?:[^.]+\.)*").replace(r"\*\*", ".*")
    return text.replace(r"\*", "[^.]*") + r"(\.|$)"
