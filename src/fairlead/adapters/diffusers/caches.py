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


States = dict[tuple[int, str], Any]
"""What caches that know no contexts keep: their states by hook and name."""


def _hooks(module: nn.Module) -> list[Any]:
    from diffusers.hooks.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(module)
    registries = (registry, *registry._get_child_registries())
    return [hook for child in registries for hook in child.hooks.values()]


def require_apart(network: nn.Module, name: str) -> None:
    """Refuses a call of single branches where a cache knows pairs of rows alone.

    Raises:
        ValueError: FasterCache predicts null rows from conditional ones of the same call.
    """
    for hook in _hooks(original(network)):
        if getattr(hook, "is_guidance_distilled", None) is False:
            raise ValueError(
                "steer: FasterCache takes every call for null and conditional rows in one, and the "
                f"guide evaluates {name!r} in a call of its own: set is_guidance_distilled=True in "
                "its configuration, take FirstBlockCache, or, where a schedule only turns "
                "guidance off, fl.steer(..., fixed_rows=True)"
            )


def _fresh(hook: Any, kind: Any) -> Any:
    """A state that begins by computing, in the phase of those that began before."""
    state, period = kind(), getattr(hook, "block_skip_range", None)
    if period is not None:
        state.iteration = period  # at 0 FasterCache may skip, with nothing kept
    return state


@contextmanager
def context(network: nn.Module, name: str, states: States) -> Iterator[None]:
    """Lets the network's caches work on the state of that name, inside the block.

    Contexts of diffusers do not nest: this one puts the pipeline's own back. Caches that know
    none keep one state for all calls: it is exchanged for one of `states`.
    """
    from diffusers.hooks.hooks import CacheContext, StateManager, _set_cache_context

    module = original(network)
    managers: list[Any] = []
    single: list[tuple[Any, Any]] = []
    for hook in _hooks(module):
        managers += [v for v in vars(hook).values() if isinstance(v, StateManager)]
        state = vars(hook).get("state")
        if hasattr(state, "reset"):
            single.append((hook, state))
    before = [m._context for m in managers]
    own = next((c for c in before if c is not None), None)
    _set_cache_context(module, CacheContext(name) if own is None else replace(own, name=name))
    for hook, state in single:
        hook.state = states.setdefault((id(hook), name), _fresh(hook, type(state)))
    try:
        yield
    finally:
        for manager, kept in zip(managers, before, strict=True):
            manager.set_context(kept)
        for hook, state in single:
            hook.state = state
