"""Perturbations and captures that touch the rows of one branch, in one thread, for one call."""

import inspect
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
                        handle = _install(module, span, perturbation, ctx, batch)
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


def _install(
    module: nn.Module, span: Span, perturbation: Perturbation, ctx: Context, batch: int
) -> Any:
    rows, thread = slice(span.start, span.stop), threading.get_ident()
    signature = inspect.signature(module.forward)

    def own(value: Any) -> Any:
        """The rows of the branch, of what has one row a sample."""
        if isinstance(value, tuple):
            return tuple(own(v) for v in value)
        return value[rows] if isinstance(value, Tensor) and value.shape[:1] == (batch,) else value

    def put(output: Any, changed: Any) -> Any:
        """An output in which the changed rows stand."""
        if isinstance(output, tuple):
            return tuple(put(o, c) for o, c in zip(output, changed, strict=True))
        if not isinstance(output, Tensor):
            return output
        parts = (output[: rows.start], changed.to(output.dtype), output[rows.stop :])
        return torch.cat([p for p in parts if len(p)])

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        given = signature.bind(*args, **kwargs).arguments
        inputs = {name: own(value) for name, value in given.items()}
        return put(output, perturbation.on(module, inputs, own(output), span.samples, ctx))

    return module.register_forward_hook(hook, with_kwargs=True)


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
