"""Prompts of several condition states as rows of one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Zeros:
    """In place of prompts: zeros behind the encoder, as long as what it makes of those of `cond`.

    Args:
        seen: Whether attention sees them (VoxInstruct); else it does not (AudioGen, MusicGen).
    """

    seen: bool = False


Prompts = str | Sequence[str] | Tensor | Sequence[Sequence[int]] | Zeros
"""Texts, or token ids: one prompt or several."""


@dataclass(frozen=True)
class Encoded:
    """Prompts as token ids `(B, P)` and mask `(B, P)`, 1 where there is a token."""

    ids: Tensor
    mask: Tensor

    def rows(self) -> list[Tensor]:
        """The tokens of each prompt without padding."""
        return [ids[mask.bool()] for ids, mask in zip(self.ids, self.mask, strict=True)]


def encode(owner: str, prompts: Prompts, tokenizer: Any, device: Any) -> list[Tensor]:
    """Each prompt as its token ids.

    Raises:
        ValueError: Texts were given without a tokenizer; there is no prompt, or one has no token.
        TypeError: Neither texts nor token ids.
    """
    if isinstance(prompts, Zeros):
        raise TypeError(f"{owner}: zeros stand for a further state, not for the prompts themselves")
    if not isinstance(prompts, (str, Tensor, Sequence)):
        raise TypeError(f"{owner}: prompts must be texts or token ids, got {prompts!r}")
    if not len(prompts) and not isinstance(prompts, str):
        raise ValueError(f"{owner}: there is no prompt")
    if isinstance(prompts, Tensor):
        rows = [prompts] if prompts.ndim == 1 else list(prompts)
    elif isinstance(prompts, str):
        rows = _texts(owner, [prompts], tokenizer)
    elif isinstance(prompts[0], int):
        rows = [torch.tensor(prompts)]
    elif all(isinstance(p, str) for p in prompts):
        rows = _texts(owner, list(prompts), tokenizer)  # type: ignore[arg-type]
    elif any(isinstance(p, str) for p in prompts):
        raise TypeError(f"{owner}: prompts must be all texts or all token ids, got both")
    else:
        rows = [torch.as_tensor(p) for p in prompts]
    for i, row in enumerate(rows):
        if not row.numel():
            raise ValueError(f"{owner}: prompt {i} has no token")
        if row.is_floating_point() or row.ndim != 1:
            raise TypeError(f"{owner}: prompt {i} must be text or whole numbers, one a token")
    return [row.to(device).long() for row in rows]


def _texts(owner: str, texts: list[str], tokenizer: Any) -> list[Tensor]:
    if tokenizer is None:
        raise ValueError(f"{owner}: texts need a tokenizer; give one, or give token ids")
    return [torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long) for text in texts]


def padded(states: Mapping[str, list[Tensor]], pad: int, *, left: bool) -> dict[str, Encoded]:
    """The prompts of all states at one length: padded on the left for decoders.

    Raises:
        ValueError: States have different numbers of prompts; names them.
    """
    counts = {name: len(rows) for name, rows in states.items()}
    if len({n for n in counts.values() if n != 1}) > 1 or counts["cond"] < max(counts.values()):
        raise ValueError(f"generate: every state needs as many prompts as cond: {counts}")
    length = max(len(row) for rows in states.values() for row in rows)
    made = {}
    for name, rows in states.items():
        rows = rows * counts["cond"] if len(rows) == 1 else rows
        ids = torch.full((len(rows), length), pad, dtype=torch.long, device=rows[0].device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(length - len(row), length) if left else slice(0, len(row))
            ids[i, place], mask[i, place] = row, 1
        made[name] = Encoded(ids, mask)
    return made


def random_prompts(
    prompts: Prompts, tokens: int, *, tokenizer: Any = None, seed: int = 0
) -> list[Tensor]:
    """Random token ids, as many as each prompt has: a null for models that never saw one.

    Args:
        prompts: The prompts, texts or token ids.
        tokens: Number of token values; ids are drawn evenly from `0` to `tokens - 1`.
        tokenizer: For texts.
        seed: The ids of prompt `i` are a function of it and of `i`.

    Returns:
        Token ids of each prompt, for `fl.generate(negative=...)`.

    Raises:
        ValueError: `tokens` is below 1; as for `fl.generate`.

    Example:
        >>> from fairlead.autoregressive import random_prompts
        >>> [len(row) for row in random_prompts([[5, 6, 7], [8]], tokens=40)]
        [3, 1]

    Source:
        Wang, Yu, Hai, et al. (2024), arXiv:2409.07556.
    """
    if tokens < 1:
        raise ValueError(f"random_prompts: tokens must be at least 1, got {tokens}")
    made = []
    for i, row in enumerate(encode("random_prompts", prompts, tokenizer, None)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        made.append(torch.randint(tokens, row.shape, generator=generator))
    return made
