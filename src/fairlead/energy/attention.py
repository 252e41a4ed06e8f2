"""Energies of attention maps: where in a picture the words of a text are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairlead.energy.base import CLEAN, Energy
from fairlead.schedules import Level

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in shares of the picture, from the upper left corner."""

Where = Box | Sequence[Box | None] | None
"""One box for all frames, or one a frame; `None` where the object is not to be seen."""

Boxes_ = Mapping[int | tuple[int, ...], Where]


class Boxes(Energy):
    r"""How little of each word's attention lies in the word's box.

    Of one head of a layer, ``S`` is the attention of all cells to one token, ``m`` the box on the
    layer's grid (1 inside), and ``top_k`` the mean of the ``k`` largest:

    .. math::
        E_1 &= a \bigl(1 - \mathrm{top}_{k}(S m)\bigr) + b \, \mathrm{top}_{k'}(S (1 - m)), \qquad
        k = \lfloor \mathrm{inside} \textstyle\sum m \rfloor, \;
        k' = \lfloor \mathrm{outside} \textstyle\sum (1 - m) \rfloor, \\
        E_2 &= c \bigl(\lvert \bar S_f - \bar m_f \rvert^2
        + \lvert (\bar S_{f+1} - \bar S_f) - (\bar m_{f+1} - \bar m_f) \rvert^2\bigr)

    with ``k`` at least 1, and a bar for the centre of mass in cells; the last part compares
    consecutive frames ``f`` of a video. ``E_1`` is summed over heads and ``E_2`` averaged; their
    sum is summed over frames and averaged over the tokens of an object, objects and layers. So
    values grow with the numbers of heads and frames, and so must thresholds. Where an object has
    no box, or one that no cell falls into, only the second part of ``E_1`` counts.

    Args:
        boxes: For each object, its token or tokens (positions in the text, that of a start token
            included) and its box, ``(left, top, right, bottom)`` in [0, 1], or one a frame,
            ``None`` for none. For prompts that differ between samples, one such mapping a sample.
        inside: Share of the box that is to be filled, in (0, 1].
        outside: Share of the rest that is to be emptied, in (0, 1].
        foreground: ``a``, >= 0.
        background: ``b``, >= 0.
        centre: ``c``, >= 0; 0.03 in the paper's benchmark.
        name: How guides call it.

    Raises:
        ValueError: A parameter is out of range; a box is empty or leaves the picture; where it is
            used, a token or the number of frames is not the model's.

    Example:
        >>> import torch, fairlead as fl
        >>> left = fl.energy.Boxes({1: (0.0, 0.0, 0.5, 1.0)}, background=1.0)
        >>> half = torch.tensor([0.5, 0.5]).expand(1, 1, 1, 2, 2, 2)  # (B, F, heads, h, w, tokens)
        >>> left({"layer": half})
        tensor([1.])

    Source:
        Lian, Shi, Yala, Darrell, Li (2023), arXiv:2309.17444; sizes of boxes are rounded apart
        from their places, so that a box which moves keeps its size.
    """

    attention = True

    def __init__(
        self,
        boxes: Boxes_ | Sequence[Boxes_],
        inside: float = 0.75,
        outside: float = 0.75,
        *,
        foreground: float = 1.0,
        background: float = 4.0,
        centre: float = 0.0,
        name: str = "boxes",
    ) -> None:
        for key, share in (("inside", inside), ("outside", outside)):
            if not 0 < share <= 1:
                raise ValueError(f"Boxes: {key} must be in (0, 1], got {share}")
        weights = (("foreground", foreground), ("background", background), ("centre", centre))
        for key, weight in weights:
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"Boxes: {key} must be at least 0 and finite, got {weight}")
        each = [boxes] if isinstance(boxes, Mapping) else list(boxes)
        self.boxes = [{_tokens(k): _checked(v) for k, v in own.items()} for own in each]
        self.shared = isinstance(boxes, Mapping)
        if not self.boxes or not all(self.boxes):
            raise ValueError("Boxes: boxes must name at least one token of each prompt")
        self.inside, self.outside = inside, outside
        self.foreground, self.background, self.centre = foreground, background, centre
        self.name = name

    def __call__(self, z: Any, level: Level = CLEAN) -> Tensor:
        """The energy of each sample.

        Args:
            z: By layer, `(B, frames, heads, h, w, tokens)`.
            level: Not looked at.
        """
        batch = len(next(iter(z.values())))
        if self.shared:
            return self._of(self.boxes[0], z)
        if len(self.boxes) != batch:
            raise ValueError(
                f"energy {self.name!r}: boxes of {len(self.boxes)} prompts were given for {batch} "
                "samples"
            )
        rows = [{k: v[i : i + 1] for k, v in z.items()} for i in range(batch)]
        return torch.cat([self._of(own, row) for own, row in zip(self.boxes, rows, strict=True)])

    def _of(self, boxes: Mapping[tuple[int, ...], Where], maps: Mapping[str, Tensor]) -> Tensor:
        """The energy under the boxes of one prompt."""
        parts = [
            self._object(tokens, where, layer)
            for layer in maps.values()
            for tokens, where in boxes.items()
        ]
        return torch.stack(parts).mean(0)

    def _object(self, tokens: tuple[int, ...], where: Where, maps: Tensor) -> Tensor:
        frames, _, h, w, length = maps.shape[1:]
        if max(tokens) >= length:
            raise ValueError(
                f"energy {self.name!r}: tokens must be in [0, {length - 1}], got {max(tokens)}"
            )
        each = _frames(where, frames, self.name)
        masks = [None if b is None else mask(b, h, w).to(maps.device) for b in each]
        masks = [None if m is None or not bool(m.any()) else m for m in masks]
        seen = maps[..., list(tokens)].movedim(-1, 3)  # (B, F, heads, n, h, w)
        parts = [self._filled(seen[:, f], m) for f, m in enumerate(masks)]
        if self.centre:
            parts += self._centred(seen, masks)
        return torch.stack(parts).sum(0).mean(1)

    def _filled(self, seen: Tensor, m: Tensor | None) -> Tensor:
        """`E_1` of one frame: `(B, heads, n, h, w)` to `(B, n)`."""
        flat = seen.flatten(-2)
        inner = flat.new_zeros(flat.shape[-1]) if m is None else m.flatten().to(flat)
        empty = _top(flat * (1 - inner), self.outside * float((1 - inner).sum()))
        value = self.background * empty
        if m is not None:
            full = _top(flat * inner, self.inside * float(inner.sum()))
            value = value + self.foreground * (1 - full)
        return value.sum(1)

    def _centred(self, seen: Tensor, masks: list[Tensor | None]) -> list[Tensor]:
        """`E_2` of each frame, `(B, n)`."""
        found = [_centre(seen[:, f]) for f in range(len(masks))]
        wanted = [None if m is None else _centre(m.to(seen)) for m in masks]
        parts = []
        for f, own in enumerate(wanted):
            if own is None:
                continue
            parts.append((found[f] - own).square())
            later = wanted[f + 1] if f + 1 < len(wanted) else None
            if later is not None:
                parts.append((found[f + 1] - found[f] - later + own).square())
        return [self.centre * p.sum(-1).mean(1) for p in parts]


def word_positions(
    tokenizer: Any, prompt: str, phrase: str, *, occurrence: int = 0
) -> tuple[int, ...]:
    """Positions of the tokens of a phrase in a prompt, for `Boxes`.

    Args:
        tokenizer: Called with a text and `add_special_tokens`, gives `input_ids`, as those of
            transformers do: `pipe.tokenizer`.
        prompt: The whole text.
        phrase: Words of it, as they stand there.
        occurrence: Which of several places, from 0.

    Raises:
        ValueError: The prompt does not hold the phrase, or not so often.

    Example:
        With a pipeline ``pipe``::

            prompt = "a red car beside a tree"
            car = fl.energy.word_positions(pipe.tokenizer, prompt, "red car")
            boxes = fl.energy.Boxes({car: (0.0, 0.3, 0.5, 1.0)})
    """
    whole = list(tokenizer(prompt).input_ids)
    own = list(tokenizer(phrase, add_special_tokens=False).input_ids)
    size = len(own)
    places = [i for i in range(len(whole) - size + 1) if whole[i : i + size] == own]
    if not own or not 0 <= occurrence < len(places):
        raise ValueError(
            f"word_positions: phrase {phrase!r} stands {len(places) if own else 0} times in "
            f"{prompt!r}, and occurrence {occurrence} was asked for"
        )
    return tuple(range(places[occurrence], places[occurrence] + size))


def mask(box: Box, h: int, w: int) -> Tensor:
    """A box on a grid, `(h, w)`, true inside."""
    left, top, right, bottom = box
    x, y = round(left * w), round(top * h)
    wide, high = round((right - left) * w), round((bottom - top) * h)
    found = torch.zeros(h, w, dtype=torch.bool)
    found[y : min(y + high, h), x : min(x + wide, w)] = True
    return found


def _top(values: Tensor, count: float) -> Tensor:
    """Mean of the largest values, at least one, of the last dimension."""
    # a share times a number of cells may miss a whole number by rounding
    return values.topk(max(1, math.floor(count + 1e-6)), dim=-1).values.mean(-1)


def _centre(weight: Tensor) -> Tensor:
    """Centre of mass of `(..., h, w)` in cells, `(..., 2)`."""
    total = weight.sum((-1, -2)).clamp(min=torch.finfo(weight.dtype).tiny)
    at = []
    for dim, other in ((-2, -1), (-1, -2)):
        cells = torch.arange(weight.shape[dim], dtype=weight.dtype, device=weight.device)
        at.append((weight.sum(other) * cells).sum(-1) / total)
    return torch.stack(at, -1)


def _tokens(key: int | tuple[int, ...]) -> tuple[int, ...]:
    tokens = key if isinstance(key, tuple) else (key,)
    if not tokens or any(isinstance(t, bool) or not isinstance(t, int) or t < 0 for t in tokens):
        raise ValueError(f"Boxes: tokens must be whole numbers of at least 0, got {key!r}")
    return tokens


def _checked(where: Where) -> Where:
    """Boxes that lie in the picture."""
    boxes = [where] if where is None or _is_box(where) else list(where)
    for box in boxes:
        if box is None:
            continue
        if not _is_box(box):
            raise ValueError(f"Boxes: a box must be (left, top, right, bottom), got {box!r}")
        left, top, right, bottom = box  # type: ignore[misc]
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # type: ignore[operator]
            raise ValueError(
                "Boxes: a box (left, top, right, bottom) must satisfy 0 <= left < right <= 1 and "
                f"0 <= top < bottom <= 1, got {box!r}"
            )
    return where


def _is_box(where: Any) -> bool:
    numbers = isinstance(where, (tuple, list)) and len(where) == 4
    return numbers and all(isinstance(v, (int, float)) for v in where)


def _frames(where: Where, frames: int, name: str) -> list[Box | None]:
    """A box for each frame."""
    if where is None or _is_box(where):
        return [where] * frames  # type: ignore[list-item]
    if len(where) != frames:
        raise ValueError(
            f"energy {name!r}: boxes must be one, or one for each of the {frames} frames, got "
            f"{len(where)}"
        )
    return list(where)  # type: ignore[arg-type]
