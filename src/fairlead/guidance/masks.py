"""Masks: which part of a sample a guide acts on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.parameters import nearest


def fitted(masks: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    """Masks as tensors that broadcast against a batch, in its dtype and on its device.

    Args:
        masks: By name, each shaped like one sample or like the batch `(B, ...)`, with sizes of 1
            where it does not change; booleans are 0 and 1.
        like: The batch.

    Raises:
        ValueError: A mask does not fit the batch, or holds numbers outside [0, 1].
    """
    made = {}
    for name, given in masks.items():
        mask = torch.as_tensor(given, device=like.device).to(like.dtype)
        one, batch = tuple(like.shape[1:]), tuple(like.shape)
        shape = mask.shape if mask.ndim == like.ndim else (1, *mask.shape)
        fits = len(shape) == like.ndim and all(
            s in (1, n) for s, n in zip(shape, batch, strict=True)
        )
        if not fits:
            raise ValueError(
                f"masks: {name!r} must be shaped like a sample, {one}, or like the batch, {batch}, "
                f"with sizes of 1 where it does not change; got {tuple(mask.shape)}"
            )
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError(f"masks: {name!r} must be in [0, 1]")
        made[name] = mask.reshape(shape)
    return made


def require_masks(guide: Guide, run: Run) -> None:
    """Refuses a guide that acts on masks which were not given.

    Raises:
        ValueError: Names the method and the mask.
    """
    for node in guide.nodes():
        for name in getattr(node, "masks", ()):
            if name not in run.masks:
                raise ValueError(
                    f"{node.name}: the mask {name!r} is missing: pass "
                    f"fl.sample(masks={{{name!r}: ...}}); {nearest(name, run.masks)}"
                )
