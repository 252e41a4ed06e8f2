"""Modules that do not run: for the rows of some branches something else is returned."""

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fairlead.denoiser import Denoiser

if TYPE_CHECKING:
    from fairlead.guidance.context import Context

Features = Tensor | tuple[Tensor, ...]
"""What a module returns."""


class Replacement(ABC):
    """Stands in for what modules return, for the rows of one branch; a hashable value.

    A module runs for the rows that nothing is provided for, and not at all if there are none.
    """

    @abstractmethod
    def modules(self, denoiser: Denoiser) -> dict[str, nn.Module]:
        """The modules it acts on, by name.

        Raises:
            ValueError: The network has none of them; lists what exists.
        """

    @abstractmethod
    def provide(self, name: str, rows: Sequence[int], ctx: "Context") -> Features | None:
        """What a module returns for samples of the batch, `(len(rows), fold, ...)`, or nothing.

        `fold` is how many rows of the module a sample has, such as the frames of a video.
        """

    @abstractmethod
    def observe(self, name: str, features: Features, rows: Sequence[int], ctx: "Context") -> None:
        """Sees what a module returned for samples of the batch, in the same shape."""


Part = tuple[int, Sequence[int], Replacement]
"""First row in the call, samples, and what replaces."""

_Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_lock = threading.Lock()
_handlers: "weakref.WeakKeyDictionary[nn.Module, dict[int, _Handler]]" = weakref.WeakKeyDictionary()


@contextmanager
def replacing(
    denoiser: Denoiser, parts: Sequence[Part], ctx: "Context", batch: int
) -> Iterator[None]:
    """Lets replacements act in one network call of `batch` rows, in this thread, in the block."""
    by_module: dict[nn.Module, tuple[str, list[Part]]] = {}
    for part in parts:
        for name, module in part[2].modules(denoiser).items():
            by_module.setdefault(module, (name, []))[1].append(part)
    try:
        for module, (name, own) in by_module.items():
            _enter(module, _handler(name, own, ctx, batch))
        yield
    finally:
        for module in by_module:
            _leave(module)


@contextmanager
def shared(modules: Sequence[nn.Module], batch: int, copies: int) -> Iterator[None]:
    """Lets modules run for the first `batch / copies` rows of a call, in this thread.

    What they return stands for the others too: to them every copy of these rows is the same.
    """

    def handle(
        original: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        first = next(v for v in (*arguments, *named.values()) if isinstance(v, Tensor))
        pick = _picker(first.shape[0], list(range(batch // copies)), batch)
        output = original(*map(pick, arguments), **{k: pick(v) for k, v in named.items()})
        return _deep(output, lambda t: t.repeat(copies, *[1] * (t.ndim - 1)))

    try:
        for module in modules:
            _enter(module, handle)
        yield
    finally:
        for module in modules:
            _leave(module)


def _enter(module: nn.Module, handler: _Handler) -> None:
    with _lock:
        held = _handlers.setdefault(module, {})
        if not held:
            original = module.forward

            def forward(*arguments: Any, **named: Any) -> Any:
                own = held.get(threading.get_ident())
                if own is None:
                    return original(*arguments, **named)
                return own(original, arguments, named)

            object.__setattr__(module, "forward", forward)
        held[threading.get_ident()] = handler


def _leave(module: nn.Module) -> None:
    with _lock:
        held = _handlers.get(module, {})
        held.pop(threading.get_ident(), None)
        if not held and _handlers.pop(module, None) is not None:
            object.__delattr__(module, "forward")  # the class's own is behind it


def _handler(name: str, parts: Sequence[Part], ctx: "Context", batch: int) -> _Handler:
    def handle(
        original: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        provided = {
            start: (samples, value)
            for start, samples, replacement in parts
            if (value := replacement.provide(name, samples, ctx)) is not None
        }
        given: set[int] = set()
        for start, (samples, _) in provided.items():
            given.update(range(start, start + len(samples)))
        left = [row for row in range(batch) if row not in given]
        if not provided:
            output = original(*arguments, **named)
            whole = _map(output, lambda t: _by_sample(t, batch))
        else:
            ran = None
            if left:
                first = next(v for v in (*arguments, *named.values()) if isinstance(v, Tensor))
                pick = _picker(first.shape[0], left, batch)
                ran = original(*map(pick, arguments), **{k: pick(v) for k, v in named.items()})
                ran = _map(ran, lambda t: _by_sample(t, len(left)))
            whole = _assemble(ran, left, provided, batch)
            output = _map(whole, lambda t: t.flatten(0, 1))
        for start, samples, replacement in parts:
            if start not in provided:
                own = _map(whole, itemgetter(slice(start, start + len(samples))))
                replacement.observe(name, own, samples, ctx)
        return output

    return handle


def _picker(size: int, rows: list[int], batch: int) -> Callable[[Any], Any]:
    def pick(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != size:
            return value
        return _by_sample(value, batch)[rows].flatten(0, 1)

    return pick


def _assemble(
    ran: Any, left: list[int], provided: Mapping[int, tuple[Sequence[int], Features]], batch: int
) -> Any:
    """All rows of a module's output, from those that ran and those that were provided."""
    first = next(iter(provided.values()))[1]
    if isinstance(first, tuple):
        parts = []
        for i in range(len(first)):
            column = {s: (rows, value[i]) for s, (rows, value) in provided.items()}
            parts.append(_assemble(None if ran is None else ran[i], left, column, batch))
        return tuple(parts)
    like = first if ran is None else ran
    whole = torch.empty((batch, *like.shape[1:]), dtype=like.dtype, device=like.device)
    if ran is not None:
        whole[left] = ran
    for start, (samples, value) in provided.items():
        assert isinstance(value, Tensor)
        whole[start : start + len(samples)] = value
    return whole


def _by_sample(value: Tensor, batch: int) -> Tensor:
    return value.reshape(batch, -1, *value.shape[1:])


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


def _deep(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Every tensor inside, in tuples and lists of any depth, changed."""
    if isinstance(value, (tuple, list)):
        return type(value)(_deep(v, change) for v in value)
    return change(value) if isinstance(value, Tensor) else value
