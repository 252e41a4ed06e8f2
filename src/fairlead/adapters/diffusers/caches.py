"""diffusers' caches keep one state a branch: a name for each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from fairlead.adapters.diffusers.inputs import original

NATIVE = {"cond": "cond", "null": "uncond"}
"""What pipelines call their branches."""


def enabled(network: nn.Module) -> bool:
    """Whether a cache of diffusers is on."""
    return bool(getattr(original(network), "is_cache_enabled", False))


@contextmanager
def context(network: nn.Module, name: str) -> Iterator[None]:
    """Lets the network's caches work on the state of that name, inside the block.

    Contexts of diffusers do not nest: this one puts the pipeline's own back.
    """
    from diffusers.hooks.hooks import CacheContext, HookRegistry, StateManager, _set_cache_context

    module = original(network)
    managers: list[Any] = []
    registry = HookRegistry.check_if_exists_or_initialize(module)
    for child in (registry, *registry._get_child_registries()):
        for hook in child.hooks.values():
            managers += [v for v in vars(hook).values() if isinstance(v, StateManager)]
    before = [m._context for m in managers]
    own = next((c for c in before if c is not None), None)
    _set_cache_context(module, CacheContext(name) if own is None else replace(own, name=name))
    try:
        yield
    finally:
        for manager, kept in zip(managers, before, strict=True):
            manager.set_context(kept)
