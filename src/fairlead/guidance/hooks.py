"""Perturbations and captures that touch the rows of one branch, in one thread, for one call."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.attention import Attended, Edit, attending
from fairlead.denoiser import Denoiser
from fairlead.guidance.branch import AttentionPerturbation, Branch, Capture, Maps, Perturbation
from fairlead.guidance.context import Context
from fairlead.guidance.replacing import Replacement, replacing


@dataclass(frozen=True)
class Span:
    """Consecutive rows of a network call that belong to one branch."""

    start: int
    samples: Sequence[int]
    branch: Branch
    captures: Sequence[Capture] = ()

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)

    def within(self, first: int, last: int) -> "Span | None":
        """The part that lies in a chunk of the call, counted from the chunk's start."""
        a, b = max(self.start, first), min(self.stop, last)
        if a >= b:
            return None
        samples = self.samples[a - self.start : b - self.start]
        return Span(a - first, samples, self.branch, self.captures)


@contextmanager
def perturbed(
    denoiser: Denoiser, spans: list[Span], ctx: Context, batch: int, maps: Maps
) -> Iterator[None]:
    """Lets perturbations act on their rows of the batch, in this thread, inside the block.

    What captures keep is added to `maps`.
    """
    if not spans:
        yield
        return
    edits = [edit for span in spans for edit in _edits(denoiser, span, ctx, maps)]
    with ExitStack() as stack:
        for span in spans:
            for perturbation in span.branch.perturbations:
                if isinstance(perturbation, Perturbation):
                    for module in perturbation.modules(denoiser):
                        handle = _install(module, span, perturbation, ctx)
                        stack.callback(handle.remove)
        parts = [
            (span.start, span.samples, p)
            for span in spans
            for p in span.branch.perturbations
            if isinstance(p, Replacement)
        ]
        if parts:
            stack.enter_context(replacing(denoiser, parts, ctx, batch))
        if edits:
            spatial = denoiser.grid or (() if ctx.x is None else tuple(ctx.x.shape[2:]))
            stack.enter_context(attending(edits, batch, spatial))
        yield


def _install(module: nn.Module, span: Span, perturbation: Perturbation, ctx: Context) -> Any:
    first, last, thread = span.start, span.stop, threading.get_ident()

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        part = tuple(i[first:last] if isinstance(i, Tensor) else i for i in inputs)
        changed = perturbation.on(module, part, output[first:last], span.samples, ctx)
        if first == 0 and last == len(output):
            return changed.to(output.dtype)
        return torch.cat([output[:first], changed.to(output.dtype), output[last:]])

    return module.register_forward_hook(hook)


def _edits(denoiser: Denoiser, span: Span, ctx: Context, maps: Maps) -> list[Edit]:
    """The edits of a span: captures first, so that they see what perturbations attend to."""
    edits = []
    for capture in span.captures:
        into = maps.setdefault((span.branch, capture), {})

        def keep(
            call: Attended, own: Capture = capture, into: dict[str, list[Tensor]] = into
        ) -> Tensor:
            kept = own(call)
            if kept is not None:
                into.setdefault(call.layer.name, []).append(kept)
            return call.attend()

        for layer in capture.layers(denoiser):
            edits.append(Edit(layer, span.start, span.stop, keep))
    for perturbation in span.branch.perturbations:
        if isinstance(perturbation, AttentionPerturbation):

            def change(call: Attended, own: AttentionPerturbation = perturbation) -> Tensor:
                return own(call, span.samples, ctx)

            for layer in perturbation.layers(denoiser):
                edits.append(Edit(layer, span.start, span.stop, change))
    return edits
