"""CFG-Cache: the difference of two branches is kept, in frequency bands."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.guidance.algebra import (
    CONTINUOUS,
    Context,
    Guide,
    Policy,
    Predictions,
    Range,
    Rows,
    register,
)
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Weight
from fairlead.guidance.policies.rows import check_only, covers, mask
from fairlead.parameters import choose
from fairlead.prediction import direction_scale

SPACES = ("output", "sample", "epsilon", "v_prediction", "flow_prediction")


@register("cache", ids=("S019",), neutral="every=1")
@dataclass(frozen=True)
class Cache(Policy):
    r"""Evaluates the other branches at some steps, and in between adds their last difference.

    With ``o`` the output of the network and ``d = o_u - o_c`` as the last step left it, at a
    skipped step

    .. math::
        \hat d = F^{-1} \bigl[ (m_L \mathbb{1}_{|k| \le R} + m_H \mathbb{1}_{|k| > R}) F d \bigr],
        \qquad \hat o_u = o_c + \hat d

    with ``F`` the 2-D Fourier transform over the last two dimensions and ``R`` a share ``radius``
    of the shorter side, rounded down. ``m_L`` is ``low`` in the first part of the run, ``m_H``
    ``high`` in the last, and both are 1 elsewhere. Every branch beside the base is treated so.

    * Space: what the network predicts, unless ``space`` says otherwise; per sample. With
      ``low = high = 1`` samples may have any shape, else they need two spatial dimensions.
    * Cost: saves the branches at skipped steps, asymptotically ``1 + 1/every`` NFE instead of
      2; keeps one tensor a branch for the trajectory. Two transforms a branch and skipped step
      where a band is scaled.
    * Neutral: ``every = 1``. With ``low = high = 1`` exact where the difference does not change.
    * Defaults by family: those here are the diffusers hook's. Steps, start, ``low`` until,
      ``high`` from: Open-Sora 1.2 30, 11/30, 1.15 until 25/30, 1.15 from 19/30; Latte 50, 17/50,
      1.1 until 44/50, 1.1 from 44/50; CogVideoX 50, 17/50, 1.1 until 40/50, 1.1 from 29/50;
      ``every = 5`` in all (6 in Open-Sora-Plan).

    Args:
        every: Steps from one evaluation to the next: step ``k``, counted from 1, evaluates if
            ``every`` divides ``k``.
        start: Share of the steps, in [0, 1], in which nothing is skipped.
        low: Factor ``m_L`` on low frequencies.
        high: Factor ``m_H`` on high frequencies.
        low_until: Share of the steps after which ``m_L`` is 1.
        high_from: Share of the steps before which ``m_H`` is 1.
        radius: Radius of the disk of low frequencies in units of the shorter side.
        compound: Whether what was scaled is kept, so that ``j`` skipped steps in a row scale by
            the ``j``-th power, as the released scripts do; the paper's formula scales once.
        only: Names of the branches that are skipped; none are all beside the base.
        space: Space of the difference; ``output`` is that of the sampled model.

    Raises:
        ValueError: A parameter is out of range; ``only`` names the base or an unknown branch; a
            band is scaled and samples have fewer than two spatial dimensions.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.Cache(start=0.2))
        'cfg(7.5) | cache(start=0.2)'

    Source:
        Lv, Si, Song, Yang, Qiao, Liu, Wong (2024), arXiv:2410.19355; released scripts.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS

    every: Annotated[int, Range(1, inf, closed="left")] = 5
    start: Annotated[float, Range(0, 1)] = 0.36
    low: Annotated[float, Range(0, inf, closed="left")] = 1.1
    high: Annotated[float, Range(0, inf, closed="left")] = 1.1
    low_until: Annotated[float, Range(0, 1)] = 0.9
    high_from: Annotated[float, Range(0, 1)] = 0.7
    radius: Annotated[float, Range(0, 1)] = 0.2
    compound: bool = True
    only: tuple[str, ...] = ()
    space: Literal["output", "sample", "epsilon", "v_prediction", "flow_prediction"] = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("cache", "space", self.space, SPACES)
        check_only("cache", self.only)

    def admit(self, guide: Guide) -> None:
        check_only("cache", self.only, guide)

    def skip(self, offered: Mapping[Branch, Rows], ctx: Context) -> Mapping[Branch, Rows]:
        if ctx.ndim < 3:
            self._check_bands(ctx)
        if ctx.fraction < self.start or (ctx.step + 1) % self.every == 0:
            return {}
        kept = ctx.recall({})
        return {
            branch: rows
            for branch, rows in offered.items()
            if branch in kept and covers(kept[branch][1], rows) and self._serves(branch)
        }

    def fill(self, branch: Branch, predictions: Predictions, ctx: Context) -> tuple[Tensor, str]:
        difference, _ = ctx.recall({})[branch]
        low, high = self._factors(ctx.fraction)
        scaled = scale_bands(difference, low, high, self.radius)
        return predictions.base + scaled / self._scale(ctx), "cached"

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        kept = dict(ctx.recall({}))
        for branch, rows in ctx.offered.get(ctx.place, {}).items():
            if branch in ctx.evaluated:
                known = mask(ctx.evaluated[branch], ctx.batch)
            elif self.compound and branch in kept and self._factors(ctx.fraction) != (1.0, 1.0):
                known = mask(rows, ctx.batch)
            else:
                continue
            if self._serves(branch):
                difference = predictions[branch] - predictions.base
                kept[branch] = (difference * self._scale(ctx), known)
        ctx.remember(kept)

    def _serves(self, branch: Branch) -> bool:
        return not self.only or branch.name in self.only

    def _factors(self, fraction: float) -> tuple[float, float]:
        return (
            self.low if fraction < self.low_until else 1.0,
            self.high if fraction >= self.high_from else 1.0,
        )

    def _check_bands(self, ctx: Context) -> None:
        """Refuses, at the first evaluation, samples that have no bands to scale."""
        steps = ctx.run.steps
        pairs = [self._factors(i / steps) for i in range(steps) if i / steps >= self.start]
        if any(low != high for low, high in pairs):
            raise ValueError(
                "cache: frequency bands need samples with two spatial dimensions, got "
                f"{max(0, ctx.ndim - 1)}; low=1, high=1 scales none"
            )

    def _scale(self, ctx: Context) -> Weight:
        """What a difference of clean estimates is multiplied by in the space of the cache."""
        space, denoiser = self.space, ctx.denoiser
        if space == "output":
            if denoiser is None or denoiser.prediction == "sample":
                return 1.0
            if denoiser.prediction == "edm":
                data = denoiser.sigma_data
                total = ctx.sigma**2 + ctx.alpha**2 * data**2
                root = total.sqrt() if isinstance(total, Tensor) else sqrt(total)
                return root / (ctx.sigma * data)
            return direction_scale(ctx.alpha, ctx.sigma, denoiser.prediction)
        return 1.0 if space == "sample" else direction_scale(ctx.alpha, ctx.sigma, space)


def scale_bands(x: Tensor, low: float, high: float, radius: float) -> Tensor:
    """Scales the frequencies inside and outside a disk, over the last two dimensions."""
    if low == high:
        return x if low == 1.0 else low * x
    height, width = x.shape[-2:]
    reach = int(radius * min(height, width) + 1e-9)
    rows = torch.arange(height, device=x.device) - height // 2
    columns = torch.arange(width, device=x.device) - width // 2
    disk = rows[:, None] ** 2 + columns**2 <= reach**2
    factors = torch.fft.ifftshift(torch.where(disk, low, high).to(x.dtype))
    spectrum: Tensor = torch.fft.fft2(x)
    scaled: Tensor = torch.fft.ifft2(spectrum * factors).real
    return scaled
