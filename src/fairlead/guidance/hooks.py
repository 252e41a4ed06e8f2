"""Perturbations as forward hooks that touch the rows of one branch, in one thread, for one call."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.guidance.branch import Perturbation
from fairlead.guidance.context import Context


@dataclass(frozen=True)
class Span:
    """Consecutive rows of a network call that belong to one perturbed branch."""

    start: int
    samples: Sequence[int]
    perturbation: Perturbation

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)

    def within(self, first: int, last: int) -> "Span | None":
        """The part that lies in a chunk of the call, counted from the chunk's start."""
        a, b = max(self.start, first), min(self.stop, last)
        if a >= b:
            return None
        samples = self.samples[a - self.start : b - self.start]
        return Span(a - first, samples, self.perturbation)


@contextmanager
def perturbed(denoiser: Denoiser, spans: list[Span], ctx: Context) -> Iterator[None]:
    """Lets each perturbation act on its rows of the batch, in this thread, inside the block."""
    if not spans:
        yield
        return
    thread = threading.get_ident()
    handles = []

    def install(module: nn.Module, span: Span) -> None:
        first, last = span.start, span.stop

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if threading.get_ident() != thread:
                return None
            part = tuple(i[first:last] if isinstance(i, Tensor) else i for i in inputs)
            changed = span.perturbation(part, output[first:last], span.samples, ctx)
            if first == 0 and last == len(output):
                return changed.to(output.dtype)
            return torch.cat([output[:first], changed.to(output.dtype), output[last:]])

        handles.append(module.register_forward_hook(hook))

    try:
        for span in spans:
            for module in span.perturbation.modules(denoiser):
                install(module, span)
        yield
    finally:
        for handle in handles:
            handle.remove()
