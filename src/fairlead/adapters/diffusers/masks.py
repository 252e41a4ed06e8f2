"""Masks over pictures as masks over latents."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def fit(name: str, mask: Any, x: Tensor, grid: tuple[int, ...] | None) -> Tensor:
    """A mask of a picture, resized to the latents by averaging.

    Args:
        name: Its name, for the error.
        mask: A PIL image, white where it is on; or numbers `(H, W)` or `(B, H, W)` in [0, 1].
        x: Latents `(B, C, h, w)`, `(B, C, F, h, w)`, or patches in a row `(B, N, C)`.
        grid: Height and width, or frames too, of patches in a row.

    Returns:
        `(B or 1, 1, ..., h, w)` or `(B or 1, N, 1)`.

    Raises:
        ValueError: It has other dimensions, or the grid of the patches is not known.
    """
    if hasattr(mask, "convert"):
        mask = np.asarray(mask.convert("L"), dtype=np.float32) / 255
    values = torch.as_tensor(mask).to(x.device, torch.float32)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"steer: the mask {name!r} must be (H, W) or (B, H, W), got {tuple(values.shape)}"
        )
    values = values.reshape(-1, 1, *values.shape[-2:])
    if x.ndim == 3:
        if grid is None:
            raise ValueError(
                f"steer: the mask {name!r} cannot be laid over latents of shape {tuple(x.shape)}"
            )
        small = interpolate(values, grid[-2:], mode="area").flatten(1)
        frames = x.shape[1] // small.shape[1]
        return small.repeat(1, frames)[..., None]
    small = interpolate(values, x.shape[-2:], mode="area")
    return small.reshape(len(small), *[1] * (x.ndim - 3), *x.shape[-2:])
