"""The first forward of a generation, without the padding of branches whose prompts are short."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WORTH = 32
"""Padding tokens that must be saved: about what a further forward of a few tokens costs."""

GIVEN = frozenset({"input_ids", "attention_mask", "position_ids"})
"""Tensors whose rows and columns are known."""


def prefilled(
    forward: Callable[..., Any],
    key: str,
    named: dict[str, Any],
    blocks: int,
    worth: int | None = None,
) -> Any:
    """The forward of left-padded prompts in two, long and short ones apart; `None` where it is one.

    By default null is one token beside prompts of any length, and all of its padding would be
    computed. Both parts end in one cache, padded with zeros that the mask hides.

    Args:
        forward: The forward of the model.
        key: What it calls its cache.
        named: What it is called with.
        blocks: Number of branches, blocks of rows of equal number.
        worth: Padding tokens that must be saved; default `WORTH`.
    """
    cache: Any = named.get(key)
    mask = named.get("attention_mask")
    tensors = {k for k, v in named.items() if isinstance(v, Tensor)}
    if not _growing(cache) or mask is None or mask.ndim != 2 or not tensors <= GIVEN:
        return None
    ids = named.get("input_ids")
    if ids is None or ids.shape != mask.shape or named.get("output_attentions"):
        return None
    if named.get("output_hidden_states") or blocks < 2:
        return None
    rows, length = mask.shape[0] // blocks, mask.shape[1]
    widths = mask.reshape(blocks, -1, length).sum(-1).amax(1).tolist()
    short = [i for i, width in enumerate(widths) if width <= length / 2]
    width = max((widths[i] for i in short), default=length)
    if not short or len(short) * rows * (length - width) < (WORTH if worth is None else worth):
        return None
    long = [i for i in range(blocks) if i not in short]
    if not long:
        return None
    from transformers import DynamicCache

    parts = []
    for chosen, columns in ((long, length), (short, width)):
        index = _rows(chosen, rows).to(mask.device)
        cut = {k: named[k][index][:, -columns:] for k in tensors}
        parts.append((index, forward(**{**named, **cut, key: DynamicCache()})))
    outs = [out for _, out in parts]
    order = torch.cat([index for index, _ in parts]).argsort()
    for i in range(len(outs[0][key].layers)):
        kept = [out[key].layers[i] for out in outs]
        keys = torch.cat([_widened(layer.keys, length) for layer in kept])[order]
        values = torch.cat([_widened(layer.values, length) for layer in kept])[order]
        cache.update(keys, values, i)
    outs[0].logits = torch.cat([out.logits[:, -1:] for out in outs])[order]
    outs[0][key] = cache
    return outs[0]


def _growing(cache: Any) -> bool:
    """Whether a cache is empty and keeps every token of every layer."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", [])
    # a cache that makes its layers when they are asked for may make others
    return bool(layers) and all(type(la) is DynamicLayer and not la.is_initialized for la in layers)


def _rows(chosen: Sequence[int], rows: int) -> Tensor:
    return torch.cat([torch.arange(i * rows, (i + 1) * rows) for i in chosen])


def _widened(kept: Tensor, length: int) -> Tensor:
    """Keys or values `(R, heads, n, width)` behind zeros."""
    return torch.nn.functional.pad(kept, (0, 0, length - kept.shape[2], 0))
