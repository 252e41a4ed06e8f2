"""Resizing and blurring along the dimensions behind the channels, as matrices, for any size."""

from collections.abc import Callable

import torch
from torch import Tensor


def along(x: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """Applies to every dimension of `x` behind the channels the matrix for its size."""
    for dim in range(2, x.ndim):
        x = (x.movedim(dim, -1) @ matrix(x.shape[dim]).to(x).mT).movedim(-1, dim)
    return x


def blur(n: int) -> Tensor:
    """The matrix of a binomial blur of `n` numbers, mirrored about the first and the last."""
    period = max(1, 2 * (n - 1))
    taps = (torch.arange(n)[:, None] + torch.arange(-2, 3)) % period
    taps = torch.minimum(taps, period - taps) % n
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=torch.float64) / 16
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, taps, weights.expand(n, 5))


def resize(n: int, m: int) -> Tensor:
    """The matrix of linear interpolation from `n` pixels to `m`, with centres matched."""
    at = ((torch.arange(m, dtype=torch.float64) + 0.5) * (n / m) - 0.5).clamp(0, n - 1)
    low = at.floor()
    share = (at - low)[:, None]
    taps = torch.stack([low, (low + 1).clamp(max=n - 1)], 1).long()
    weights = torch.cat([1 - share, share], 1)
    return torch.zeros(m, n, dtype=torch.float64).scatter_add_(1, taps, weights)
