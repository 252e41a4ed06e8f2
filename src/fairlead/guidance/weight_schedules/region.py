"""Guidance in a region: a mask, or some indices of a dimension."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairlead.denoiser import Denoiser, working_dtype
from fairlead.guidance.algebra import CONTINUOUS, Context, Schedule, register
from fairlead.guidance.context import Run, Weight


@register("region", ids=("XM3",))
@dataclass(frozen=True)
class Region(Schedule):
    r"""Multiplies the weight of the terms before it by a mask, pixel by pixel.

    .. math:: w \gets w \, m \quad\text{or, among overlapping regions,}\quad
              w \, \frac{m}{\max(1, \sum_q m_q)}

    Masks are given by name to ``fl.sample(masks=...)``, in [0, 1], shaped like one sample or like
    the batch, with sizes of 1 where they do not change: ``(1, H, W)`` for images, ``(1, F, H, W)``
    or ``(1, 1, H, W)`` for videos, ``(B, 1, H, W)`` for a mask a sample. Any sizes will do. The
    prediction stays affine in the branches, so the result is the same in x0, eps, v or u space.

    * Cost: 0 NFE; where the mask is 0 the base stands.
    * Neutral: a mask of ones. A mask at latent resolution keeps 0 and 1 only if it was resized to
      the nearest.

    Args:
        mask: Its name.
        of: Names of all masks that share the sample with it; where they overlap each has its
            share, and what is left by them is the base's.

    Raises:
        ValueError: No such mask was given, or it does not fit (before the first step); ``of``
            lacks the mask itself.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.Region("left"))
        "cfg(4.0) | region('left')"

    Source:
        Bar-Tal, Yariv, Lipman, Dekel (2023), arXiv:2302.08113.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS

    mask: str
    of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mask, str) or not self.mask:
            raise ValueError(f"region: mask must be the name of a mask, got {self.mask!r}")
        if isinstance(self.of, str) or (self.of and self.mask not in self.of):
            raise ValueError(f"region: of must be names, with {self.mask!r} one of them")

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the masks that it needs."""
        return self.of or (self.mask,)

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        if isinstance(weight, float) and weight == 0.0:
            return 0.0
        mask = ctx.run.masks[self.mask]
        if self.of:
            total: Tensor = sum((ctx.run.masks[q] for q in self.of), torch.zeros_like(mask))
            mask = mask / total.clamp(min=1)
        masked = weight * mask
        return masked if bool(masked.any()) else 0.0


@register("part", ids=("S072", "S100", "S040"))
@dataclass(frozen=True)
class Part(Schedule):
    r"""Keeps the terms before it for some indices of one dimension; elsewhere the base stands.

    .. math:: w \gets w \, [\text{start} \le i < \text{stop}]

    Pose vectors whose last 9 of 64 numbers are guided: ``cfg(1.1) | part(-9)``; the frames that
    are generated and not those that are given: ``part(1, -1, dim=2)``; the channels that predict
    the noise and not its variance: ``part(0, 4)``.

    * Cost: 0 NFE.
    * Neutral: ``part(0)``, the whole dimension.

    Args:
        start: First index; below 0 it counts from the end.
        stop: Index behind the last; ``None``: to the end.
        dim: Dimension of the batch ``(B, ...)``: 1 is channels.

    Raises:
        ValueError: ``dim`` is the batch, or nothing is left between the two (before the first
            step).

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.1) | fl.Part(1))
        'cfg(1.1) | part(1)'

    Source:
        Lee, Saito, Nam, Sung, Kim (2024), arXiv:2403.17422.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS

    start: int
    stop: int | None = None
    dim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start", "stop", "dim"):
            value = getattr(self, name)
            absent = name == "stop" and value is None
            if not absent and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"part: {name} must be a whole number, got {value!r}")
        if self.dim == 0:
            raise ValueError("part: dim must be 1 or more, or negative, got 0, the batch")

    def check(self, denoiser: Denoiser, run: Run) -> None:
        if denoiser.shape is not None:
            self._mask((1, *denoiser.shape))

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        if isinstance(weight, float) and weight == 0.0:
            return 0.0
        like = ctx.like
        return weight * self._mask(tuple(like.shape)).to(like.device, working_dtype(like))

    def _mask(self, shape: tuple[int, ...]) -> Tensor:
        ndim = len(shape)
        if not -ndim < self.dim < ndim:
            raise ValueError(
                f"part: dim must be in 1..{ndim - 1} or -{ndim - 1}..-1 for samples of shape "
                f"{shape[1:]}, got {self.dim}"
            )
        size = shape[self.dim]
        mask = torch.zeros(size)
        mask[self.start : self.stop] = 1
        if not bool(mask.any()):
            raise ValueError(
                f"part: nothing lies between start = {self.start} and stop = {self.stop} in a "
                f"dimension of {size}"
            )
        return mask.reshape([size if i == self.dim % ndim else 1 for i in range(ndim)])
