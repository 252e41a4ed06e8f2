"""Gaussian blur of images and token grids."""

from math import ceil, inf

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(x: Tensor, width: float, kernel: int | None = None) -> Tensor:
    """Blurs the last two dimensions, with reflected borders.

    The taps are ``exp(-j^2 / (2 width^2))``, normalised; constants stay as they are.

    Args:
        x: `(..., H, W)`.
        width: Standard deviation in pixels, over 0; `inf` gives the mean over the image.
        kernel: Taps a side, odd; default the odd number next to ``6 width``. No more than the
            smaller side takes, reflected, by less than itself.
    """
    if width == inf:
        return x.mean((-2, -1), keepdim=True).expand(x.shape)
    taps = odd(ceil(6 * width)) if kernel is None else kernel
    side = min(x.shape[-2:])
    taps = min(taps, side + 1 if side % 2 == 0 else side, 2 * side - 1)
    if taps == 1:
        return x
    j = torch.arange(taps, dtype=x.dtype, device=x.device) - taps // 2
    line = torch.softmax(-(j**2) / (2 * width**2), 0)
    half = taps // 2
    flat = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (half, half, half, half), mode="reflect")
    flat = F.conv2d(flat, line.reshape(1, 1, -1, 1))
    return F.conv2d(flat, line.reshape(1, 1, 1, -1)).reshape(x.shape)


def odd(number: int) -> int:
    """The number if it is odd, else the next one."""
    return number + 1 - number % 2
