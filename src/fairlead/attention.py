"""Attention of any network, found by name, read and replaced for some rows of a batch.

`find_attention(network)` names the attention layers of our networks and of others: modules with
projections `to_q` (all of diffusers), or what a network lists itself as `attention_layers`. Inside
`attending(edits, batch)` each `Edit` is handed every attention call of its layer for its rows, as
an `Attended`, and returns what stands in for the result:

>>> import torch
>>> from fairlead.attention import Edit, attending, find_attention
>>> from fairlead.testing import tiny_network
>>> network = tiny_network()
>>> layers = find_attention(network)
>>> list(layers), layers["mid.0"].kind
(['down.0.0', 'mid.0', 'up.0.0', 'up.0.1'], 'self')
>>> x, t, label = torch.randn(3, 2, 8, 8), torch.ones(3), torch.arange(3)
>>> with attending([Edit(layers["mid.0"], 2, 3, lambda call: call.v)], batch=3):
...     changed = network(x, t, label)  # the last row with identity attention
>>> (changed - network(x, t, label)).flatten(1).amax(1).abs() > 1e-4
tensor([False, False,  True])

No attention processor is replaced: a module's calls of `scaled_dot_product_attention` are
intercepted, in this thread, while one of the selected modules runs, and rows without an edit stay
in it, fused. A layer that computes attention otherwise is refused, unless it is called with
queries, keys and values alone. Nothing is left behind, also after an exception.

Queries, keys and values are `(M, heads, N, d)`, `M` the rows of the edit, or a multiple of them
where a layer folds another axis into the batch (the frames of a video).
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from math import ceil, prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Kind = Literal["self", "cross", "joint"]
"""Over the image's own tokens; over those of a text; over both in one sequence."""


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """An attention layer of a network.

    Attributes:
        name: Dotted name.
        module: The module that is called.
        kind: `self`, `cross` or `joint`.
        block: The block around it, which may know what the layer is not told: how many tokens
            are text.
    """

    name: str
    module: nn.Module
    kind: Kind
    block: nn.Module | None = None

    @property
    def adapters(self) -> int:
        """How many image prompts it attends to, in calls of their own after the text's."""
        own: int | None = getattr(self.module, "adapters", None)
        processor = getattr(self.module, "processor", None)
        return len(getattr(processor, "to_k_ip", None) or ()) if own is None else own


@dataclass
class Attended:
    """One attention call of a layer, for the rows of one edit.

    Attributes:
        layer: The layer.
        q: Queries `(M, heads, N, d)`; keys `k` and values `v` likewise.
        mask: Added to the logits, or false where there is no attention; `None` for none.
        scale: What logits are multiplied by.
        image: Which queries are the image's tokens; of joint attention also which keys.
        text: Which keys are the text's tokens, or `None`; of joint attention also which queries.
        index: Number of this call within one run of the layer, from 0; adapters call twice.
        spatial: Height and width of a sample, or frames, height and width; empty if unknown.
        plain: What attends when nothing is changed.
        given: What the layer was given for these rows, `(M, N, width)`; `None` where it is called
            with queries, keys and values.
        earlier: What the calls before it in this run of the layer returned for the same rows.
        rows: Which rows of the batch these are.
    """

    layer: AttentionLayer
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    image: slice
    text: slice | None
    index: int
    spatial: tuple[int, ...]
    plain: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = field(repr=False)
    given: Tensor | None = field(default=None, repr=False)
    earlier: tuple[Tensor, ...] = field(default=(), repr=False)
    rows: range = range(0)

    def attend(
        self,
        q: Tensor | None = None,
        k: Tensor | None = None,
        v: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Fused attention, on what is given in place of the layer's own."""
        return self.plain(
            self.q if q is None else q,
            self.k if k is None else k,
            self.v if v is None else v,
            self.mask if mask is None else mask,
        )

    def logits(self) -> Tensor:
        """Scaled and masked products of queries and keys, `(M, heads, N, L)`."""
        return masked(self.q @ self.k.transpose(-1, -2) * self.scale, self.mask)

    def probabilities(self) -> Tensor:
        """The attention matrix, `(M, heads, N, L)`; what fused attention never holds."""
        return self.logits().softmax(-1)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """The grid that the image's tokens form.

        Raises:
            ValueError: They form none.
        """
        rows = range(self.q.shape[-2])[self.image]
        return token_grid(len(rows), self.spatial, self.layer.name)


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits under a mask as `scaled_dot_product_attention` takes it."""
    if mask is None:
        return logits
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, -torch.inf)
    return logits + mask


def token_grid(tokens: int, spatial: Sequence[int], owner: str = "attention") -> tuple[int, ...]:
    """The grid of tokens that a sample is cut into: its size divided by one patch size.

    Sizes are rounded up. Of a video also the grid of one frame, and every frame's.

    Args:
        tokens: Number of tokens.
        spatial: Height and width of the sample, or frames, height and width, or its length.
        owner: Who asks, for the error.

    Raises:
        ValueError: No patch size gives that number.
    """
    inner = spatial[-2:]
    for patch in range(1, max(inner, default=0) + 1):
        cells = tuple(ceil(side / patch) for side in inner)
        frames, rest = divmod(tokens, prod(cells))
        if frames == 1 and not rest:
            return cells
        if len(spatial) == 3 and not rest and 1 < frames <= spatial[0]:
            return (frames, *cells)
    raise ValueError(
        f"{owner}: {tokens} tokens form no grid of a sample of size {tuple(spatial)}; say its "
        "height and width: Denoiser(grid=(h, w))"
    )


def find_attention(network: object) -> dict[str, AttentionLayer]:
    """The attention layers of a network by name, in the order in which its modules are listed.

    What it lists itself as `attention_layers` counts alone; else every module with a projection
    `to_q` or `to_qkv` is one.

    Args:
        network: Any; one that is no module and lists none has none.
    """
    listed = getattr(network, "attention_layers", None)
    if listed is not None:
        return {n: AttentionLayer(n, m, getattr(m, "kind", "self")) for n, m in listed.items()}
    if not isinstance(network, nn.Module):
        return {}
    modules = dict(network.named_modules())
    found = {}
    for name, module in modules.items():
        if hasattr(module, "to_q") or hasattr(module, "to_qkv"):
            block = modules.get(name.rpartition(".")[0]) if name else None
            found[name] = AttentionLayer(name, module, _kind(module, block), block)
    return found


def _kind(module: nn.Module, block: nn.Module | None) -> Kind:
    if getattr(module, "is_cross_attention", False):
        return "cross"
    if getattr(module, "add_q_proj", None) is not None:
        return "joint"
    # one stream that holds the text as well
    return "joint" if "Single" in type(block).__name__ else "self"


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to consecutive rows in one layer.

    Attributes:
        layer: The layer.
        start: First row of the batch; `stop` is the one after the last.
        function: Given the call, returns the result for these rows, `(M, heads, N, d)`. Several
            edits of the same rows nest, a later one around the earlier ones: its
            `call.attend()` is what they make of the call.
    """

    layer: AttentionLayer
    start: int
    stop: int
    function: Callable[[Attended], Tensor]


class _Here(threading.local):
    """The watched layers of this thread."""

    def __init__(self) -> None:
        self.watches: dict[nn.Module, _Watch] = {}


_here = _Here()


@contextmanager
def attending(
    edits: Sequence[Edit], batch: int, spatial: Sequence[int] = (), *, outermost: bool = False
) -> Iterator[None]:
    """Lets edits act on the attention calls of their layers, in this thread, inside the block.

    Inside another such block the edits of both act: those of this one next to the plain attention.

    Args:
        edits: What happens where; where several act on a row they nest.
        batch: Rows of the network call.
        spatial: Height and width of a sample (or frames, height, width), for edits that need
            the grid of the tokens.
        outermost: Whether these edits go around those of the block around this one.

    Raises:
        ValueError: The block around this one is a call of another number of rows; or, on the
            call, a layer computes attention out of reach, or it cannot be told which tokens of
            a joint layer are text.
    """
    by_layer: dict[str, list[Edit]] = {}
    for edit in edits:
        by_layer.setdefault(edit.layer.name, []).append(edit)
    handles: list[Any] = []
    watches, entered = _here.watches, list[nn.Module]()
    before: list[tuple[_Watch, list[Edit]]] = []
    try:
        for own in by_layer.values():
            module = own[0].layer.module
            watch = watches.get(module)
            if watch is None:
                watches[module] = watch = _Watch(own, batch, tuple(spatial))
                entered.append(module)
                watch.install(handles)
                continue
            if watch.batch != batch:
                raise ValueError(
                    f"attention layer {watch.layer.name!r}: edits of a call of {batch} rows "
                    f"inside one of {watch.batch}"
                )
            before.append((watch, watch.edits))
            watch.edits = [*watch.edits, *own] if outermost else [*own, *watch.edits]
        yield
    finally:
        for watch, kept in before:
            watch.edits = kept
        for module in entered:
            del watches[module]
        for handle in handles:
            handle.remove()


class _Watch:
    """One layer under its edits."""

    def __init__(self, edits: list[Edit], batch: int, spatial: tuple[int, ...]) -> None:
        self.layer, self.edits = edits[0].layer, edits
        self.batch, self.spatial = batch, spatial
        self.thread = threading.get_ident()
        self.block_text: int | None = None
        self.text: int | None = None
        self.calls = 0
        self.given: Tensor | None = None
        self.earlier: dict[int, tuple[Tensor, ...]] = {}
        self.joined: list[tuple[int, int]] = []
        self.mode: _Interception | None = None

    def install(self, handles: list[Any]) -> None:
        module, block = self.layer.module, self.layer.block
        if block is not None and self.layer.kind == "joint":
            handles.append(block.register_forward_pre_hook(self.enter_block, with_kwargs=True))
        handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(self.leave, always_call=True))

    def enter_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == self.thread:
            self.block_text = _text_length(block, args, kwargs)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self.thread:
            return
        self.text, self.calls, self.joined = _text_length(module, args, kwargs), 0, []
        given = args[0] if args else kwargs.get("hidden_states")
        self.given = given if isinstance(given, Tensor) and given.ndim == 3 else None
        self.mode = _Interception(self)
        self.mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != self.thread or self.mode is None:
            return None
        mode, self.mode = self.mode, None
        self.given, self.earlier = None, {}
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self.calls or output is None:  # no output: it raised
            return None
        if len(args) == 3 and all(isinstance(a, Tensor) for a in args):
            # a core that attends in its own way: its output is what plain rows get
            return self.edited(args[0], args[1], args[2], output)
        raise ValueError(
            f"attention layer {self.layer.name!r}: {type(module).__name__} does not call "
            "torch.nn.functional.scaled_dot_product_attention, so nothing can act on it; choose "
            "an attention processor that does"
        )

    def fused(self, *args: Any, **kwargs: Any) -> Tensor:
        """Stands in for `scaled_dot_product_attention`."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        q, k, v = given.pop("query"), given.pop("key"), given.pop("value")
        mask = given.pop("attn_mask", None)
        return self.edited(q, k, v, None, mask, **given)

    def edited(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Attention of all rows; `known` is what it is without edits, where that is known."""
        index, self.calls = self.calls, self.calls + 1
        if len(q) % self.batch:
            raise ValueError(
                f"attention layer {self.layer.name!r}: {len(q)} rows are no multiple of the "
                f"batch of {self.batch}"
            )
        fold = len(q) // self.batch
        image, text = self.tokens(q.shape[-2], k.shape[-2])
        given = self.given
        if given is not None and given.shape[:2] != (len(q), q.shape[-2]):
            given = None
        parts = []
        for start, stop, functions in self.segments():
            rows = slice(start * fold, stop * fold)
            per_row = mask is not None and mask.ndim == 4 and len(mask) > 1
            own = mask[rows] if mask is not None and per_row else mask
            attend: Callable[..., Tensor] = partial(_attention, options)
            if known is not None:
                attend = partial(self.own, (q[rows], k[rows], v[rows], known[rows]))
            for function in functions:
                call = Attended(
                    self.layer, q[rows], k[rows], v[rows], own,
                    options.get("scale") or q.shape[-1] ** -0.5,
                    image, text, index, self.spatial, attend,
                    None if given is None else given[rows], self.earlier.get(start, ()),
                    range(start, stop),
                )  # fmt: skip
                attend = partial(_within, call, function)
            out = attend(q[rows], k[rows], v[rows], own).to(q.dtype)
            if functions and self.layer.adapters:
                self.earlier[start] = (*self.earlier.get(start, ()), out)
            parts.append(out)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def own(
        self, plain: tuple[Tensor, ...], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of a core that attends in its own way; `plain` is one call and its output."""
        pairs = zip((q, k, v), plain, strict=False)
        if all(a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in pairs):
            return plain[3]
        out: Tensor = self.layer.module.forward(q, k, v)
        return out

    def segments(self) -> list[tuple[int, int, list[Callable[[Attended], Tensor]]]]:
        """Consecutive rows with the same edits."""
        ends = {0, self.batch} | {e.start for e in self.edits} | {e.stop for e in self.edits}
        found = []
        for start, stop in pairwise(sorted(ends)):
            own = [e.function for e in self.edits if e.start <= start and stop <= e.stop]
            found.append((start, stop, own))
        return found

    def tokens(self, queries: int, keys: int) -> tuple[slice, slice | None]:
        """Which tokens are the image's and which the text's."""
        if self.layer.kind == "cross":
            return slice(0, queries), slice(0, keys)
        text = self.block_text if self.text is None else self.text
        if self.layer.kind == "self" or not text or queries <= text:
            return slice(0, queries), None
        if self.text_first(text, queries - text):
            return slice(text, queries), slice(0, text)
        return slice(0, queries - text), slice(queries - text, queries)

    def text_first(self, text: int, image: int) -> bool:
        """Whether the text precedes the image in a joint sequence."""
        if text != image:
            if (text, image) in self.joined:
                return True
            if (image, text) in self.joined:
                return False
        name = type(self.layer.module).__name__
        if name.startswith("Flux"):
            return True
        if name == "Attention":  # of diffusers, which SD3 uses
            return False
        raise ValueError(
            f"attention layer {self.layer.name!r}: cannot tell which of {text + image} tokens are "
            f"the {text} of the text"
        )


class _Interception(TorchFunctionMode):
    """Sees the torch functions that one layer calls."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.watch.fused(*args, **kwargs)
        if func is torch.cat and len(args[0]) == 2:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            self.watch.joined.append((args[0][0].shape[dim], args[0][1].shape[dim]))
        return func(*args, **kwargs)


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


def _attention(
    options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
    return out


def _within(
    call: Attended,
    function: Callable[[Attended], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """What an edit makes of a call whose arguments an edit around it may have replaced."""
    call.q, call.k, call.v, call.mask = q, k, v, mask
    return function(call)


def _text_length(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Number of text tokens that a module is called with."""
    text = kwargs.get("encoder_hidden_states")
    if text is None and len(args) > 1:
        names = list(inspect.signature(module.forward).parameters)
        if "encoder_hidden_states" in names[: len(args)]:
            text = args[names.index("encoder_hidden_states")]
    return text.shape[1] if isinstance(text, Tensor) and text.ndim == 3 else None
