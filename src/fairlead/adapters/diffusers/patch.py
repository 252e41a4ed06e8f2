"""Calls of a network and a scheduler's step, intercepted for one call of a pipeline."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

MARK = "_fairlead_steered"

Handler = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From how a network would be called to what is called instead."""


@contextmanager
def called(network: nn.Module, handler: Handler) -> Iterator[None]:
    """Lets calls of a network go through a handler, inside the block.

    The handler is given the call that it replaces. Hooks, `forward` and what accelerate and
    `torch.compile` do to them stay below it: nothing of them is traced or replaced.

    Raises:
        RuntimeError: Another handler stands in the network's way.
    """
    own = network.__dict__
    if MARK in own:
        raise RuntimeError(
            f"steer: this {type(network).__name__} is being steered already, by another pipeline "
            "that shares it; steer one of them at a time"
        )
    before = own.get("_compiled_call_impl")
    own[MARK] = True
    own["_compiled_call_impl"] = handler(before or network._call_impl)
    try:
        yield
    finally:
        del own[MARK]
        if before is None:
            del own["_compiled_call_impl"]
        else:
            own["_compiled_call_impl"] = before


@contextmanager
def replaced_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an instance inside the block, and takes it away again."""
    had, before = name in owner.__dict__, owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if had:
            owner.__dict__[name] = before
        else:
            owner.__dict__.pop(name, None)


@contextmanager
def all_called(
    networks: Mapping[str, nn.Module], handler: Callable[[str, nn.Module], Handler]
) -> Iterator[None]:
    """`called` for several networks, each with the handler of its name."""
    with ExitStack() as stack:
        for name, network in networks.items():
            stack.enter_context(called(network, handler(name, network)))
        yield
