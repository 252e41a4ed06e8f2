"""Distance to a linear measurement: inverse problems, with ready-made operators."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.energy.base import CLEAN, Energy
from fairlead.parameters import choose
from fairlead.schedules import Level

Operator = Tensor | Callable[[Tensor], Tensor]
"""A matrix `(m, d)` that acts on flattened samples, or a linear function of a batch."""


class Linear(Energy):
    r"""How far a sample is from a measurement ``y = A x0 + noise``.

    .. math::
        E(x_0) = \frac{\lVert y - A x_0 \rVert^2}{2 \, \mathrm{noise}^2}
        \;\;(\text{gaussian}), \qquad
        E(x_0) = \frac{\lVert y - A x_0 \rVert}{\mathrm{noise}} \;\;(\text{norm})

    The first is minus the log-likelihood; the second is what training-free guidance of inverse
    problems uses, whose gradient does not fade with the residual.

    Args:
        A: A matrix ``(m, d)`` that acts on flattened samples, or a linear function of a batch
            ``(B, ...)``, such as ``inpainting(mask)``.
        y: The measurement of one sample, for all, or with the batch in front.
        noise: Standard deviation of the measurement, > 0.
        form: ``gaussian`` or ``norm``.
        name: How guides call it.

    Raises:
        ValueError: ``noise`` is not positive, ``y`` is not finite, or the shape of ``A x0`` is not
            that of ``y``.

    Example:
        >>> import torch, fairlead as fl
        >>> e = fl.energy.Linear(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), noise=0.5)
        >>> e(torch.tensor([[1.0, 7.0], [2.0, 7.0]]))
        tensor([2., 0.])
    """

    def __init__(
        self,
        A: Operator,
        y: Tensor | list[float] | float,
        noise: float = 1.0,
        *,
        form: str = "gaussian",
        name: str = "linear",
    ) -> None:
        choose("Linear", "form", form, ("gaussian", "norm"))
        if not noise > 0 or not math.isfinite(noise):
            raise ValueError(f"Linear: noise must be positive and finite, got {noise}")
        if isinstance(A, Tensor) and A.ndim != 2:
            raise ValueError(f"Linear: A must be a matrix (m, d), got shape {tuple(A.shape)}")
        given = torch.as_tensor(y)
        self.A, self.y, self.noise = A, given if given.ndim else given[None], float(noise)
        if not bool(torch.isfinite(self.y).all()):
            raise ValueError("Linear: y must be finite")
        self.form, self.name = form, name

    def measure(self, z: Tensor) -> Tensor:
        """`A z`, `(B, ...)`."""
        if isinstance(self.A, Tensor):
            flat = z.flatten(1)
            if flat.shape[1] != self.A.shape[1]:
                raise ValueError(
                    f"Linear: A is {tuple(self.A.shape)}, but a sample has {flat.shape[1]} numbers"
                )
            seen: Tensor = flat @ self.A.to(flat).T
            return seen
        return self.A(z)

    def residual(self, z: Tensor) -> Tensor:
        """`y - A z`, `(B, m)`."""
        seen = self.measure(z)
        y = self.y.to(seen)
        if y.shape not in (seen.shape, seen.shape[1:]):
            raise ValueError(
                f"Linear: y must be {tuple(seen.shape[1:])} or {tuple(seen.shape)}, the shape of "
                f"A x0, got {tuple(y.shape)}"
            )
        return (y - seen).flatten(1)

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        residual = self.residual(z) / self.noise
        if self.form == "gaussian":
            return residual.square().sum(1) / 2
        return _root(residual.square().sum(1))


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0: there the measurement is met, nothing pulls."""
    met = square == 0
    return torch.where(met, 0.0 * square, torch.where(met, 1.0, square).sqrt())


def inpainting(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Keeps the numbers where `mask` is true: `(B, ...)` to `(B, m)`.

    Args:
        mask: Shaped like one sample, or broadcasts to it; true (1) where a sample is known.
    """
    known = mask.bool()

    def keep(z: Tensor) -> Tensor:
        return z.flatten(1)[:, known.to(z.device).expand(z.shape[1:]).flatten()]

    return keep


def downsampling(factor: int) -> Callable[[Tensor], Tensor]:
    """Means over blocks of `factor` pixels a side: `(B, C, H, W)` to a smaller image.

    Raises:
        ValueError: `factor` is below 1; where it is used, if it does not divide the image.
    """
    if factor < 1:
        raise ValueError(f"downsampling: factor must be at least 1, got {factor}")

    def shrink(z: Tensor) -> Tensor:
        if z.shape[-1] % factor or z.shape[-2] % factor:
            raise ValueError(
                f"downsampling: factor {factor} does not divide the image {tuple(z.shape[-2:])}"
            )
        return F.avg_pool2d(z, factor)

    return shrink


def blur(width: float, size: int | None = None) -> Callable[[Tensor], Tensor]:
    """A Gaussian blur of images `(B, C, H, W)`, reflected at the border.

    Args:
        width: Standard deviation in pixels, > 0.
        size: Odd number of taps; default: three deviations to each side.

    Raises:
        ValueError: `width` is not positive, or `size` is not odd.
    """
    if not width > 0:
        raise ValueError(f"blur: width must be positive, got {width}")
    taps = 2 * math.ceil(3 * width) + 1 if size is None else size
    if taps < 1 or taps % 2 == 0:
        raise ValueError(f"blur: size must be odd, got {size}")
    at = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-(at**2) / (2 * width**2))
    kernel = kernel / kernel.sum()

    def smooth(z: Tensor) -> Tensor:
        c, k = z.shape[1], kernel.to(z)
        pad = taps // 2
        z = F.pad(z, (pad, pad, pad, pad), mode="reflect")
        z = F.conv2d(z, k.reshape(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
        return F.conv2d(z, k.reshape(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)

    return smooth


def projections(count: int, dimension: int, seed: int = 0) -> Tensor:
    """Random measurements for compressed sensing: `(count, dimension)`, rows of unit length.

    Raises:
        ValueError: `count` is not in [1, dimension].
    """
    if not 1 <= count <= dimension:
        raise ValueError(f"projections: count must be in [1, {dimension}], got {count}")
    generator = torch.Generator().manual_seed(seed)
    rows: Any = torch.randn(count, dimension, generator=generator)
    matrix: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return matrix
