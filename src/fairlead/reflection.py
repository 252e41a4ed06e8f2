r"""Diffusion on the unit cube with reflecting walls: the walls, and the kernel between them.

Noise of deviation `sigma` is the heat equation run to `tau = sigma^2 / 2`. Per dimension, the
kernel from `x0` to `x` is a sum over mirror images, quick for small `tau`, or over
eigenfunctions, quick for large:

.. math::
    p &= \sum_{|m| \le 2} N(x + 2m - x_0; 0, 2\tau) + N(-x + 2m - x_0; 0, 2\tau), \\
    p &= 1 + 2 \sum_{k=1}^{20} e^{-k^2 \pi^2 \tau} \cos(k \pi x_0) \cos(k \pi x) .

Source: Lou, Ermon (2023), arXiv:2304.04740.
"""

import math

import torch
from torch import Tensor

SWITCH = 0.01
"""`tau` above which eigenfunctions are summed; both series agree there to 3e-10."""

EIGENFUNCTIONS = 20
IMAGES = 2


def reflect(x: Tensor) -> Tensor:
    """Folds every number into [0, 1] at the walls; what lies inside stays."""
    y = x.remainder(2.0)
    return torch.where(y > 1, 2 - y, y)


def images(x: Tensor, x0: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor]:
    """`log p` and its derivative in `x`, by mirror images; broadcasts."""
    shifts = 2.0 * torch.arange(-IMAGES, IMAGES + 1, dtype=x.dtype, device=x.device)
    x, x0 = x[..., None], x0[..., None]
    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)[..., None]
    apart = torch.cat([x + shifts - x0, -x + shifts - x0], -1)
    sign = torch.cat([torch.ones_like(shifts), -torch.ones_like(shifts)])
    log_parts = -(apart**2) / (2 * variance) - (2 * math.pi * variance).log() / 2
    slope = (log_parts.softmax(-1) * -sign * apart / variance).sum(-1)
    return log_parts.logsumexp(-1), slope


def eigenfunctions(x: Tensor, x0: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor]:
    """`log p` and its derivative in `x`, by eigenfunctions; broadcasts."""
    k = math.pi * torch.arange(1, EIGENFUNCTIONS + 1, dtype=x.dtype, device=x.device)
    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    decay = (-(k**2) * variance[..., None] / 2).exp() * (k * x0[..., None]).cos()
    p = 1 + 2 * (decay * (k * x[..., None]).cos()).sum(-1)
    slope = -2 * (decay * k * (k * x[..., None]).sin()).sum(-1)
    p = p.clamp(min=torch.finfo(x.dtype).tiny)
    return p.log(), slope / p


def heat_kernel(x: Tensor, x0: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor]:
    """Log density and score of the reflected heat kernel, per dimension.

    Args:
        x: Where, in [0, 1].
        x0: From where, in [0, 1]; broadcasts against `x`.
        variance: `2 tau`: `sigma^2` of the noise, > 0; broadcasts.

    Returns:
        `log p(x | x0)` and `d log p / dx`, each of the shape of all three together.
    """
    small = torch.as_tensor(variance, dtype=x.dtype, device=x.device) / 2 <= SWITCH
    near, far = images(x, x0, variance), eigenfunctions(x, x0, variance)
    return torch.where(small, near[0], far[0]), torch.where(small, near[1], far[1])
