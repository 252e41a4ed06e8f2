"""Re-dilation of convolutions over the first part of a run."""

import math
from dataclasses import dataclass
from typing import Annotated

from fairlead.guidance.algebra import Context, Range, Schedule, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.dilation import Dilation, dilated


@register("redilate", ids=("S020",), neutral="1.0")
@dataclass(frozen=True)
class Redilate(Schedule):
    r"""Lets convolutions see further in early steps, for samples larger than those of training.

    Every branch before it, and with them the base, is predicted by the network whose chosen
    convolutions are dilated ``p`` times: their input is resized by ``ceil(p) / p``, convolved with
    dilation ``ceil(p)`` and resized back. Several in a row dilate several groups of layers; a layer
    that two of them name is dilated by the last.

    .. math:: p_i = p \quad \text{or, progressive,} \quad
              \max \Bigl( \Bigl\lceil p \, \frac{\tau - i/N}{\tau} \Bigr\rceil, 2 \Bigr)
              \qquad \text{for } i / N < \tau

    * Cost: 0 NFE; the dilated convolutions run twice.
    * Neutral: ``factor = 1``.
    * It moves the base, so it stands after the whole sum. The paper's dispersed kernels are not
      part of it.

    Args:
        factor: ``p`` >= 1, fractions allowed; SDXL at 4096 takes 4 (deepest blocks), 3 and 2.
        layers: Convolutions by name: whole dotted components, ``*`` for any one, ``**`` for any
            number, several with commas or as a list; ``all`` for every one with a kernel above 1.
        until: ``tau``, share of the steps in which it is active; 0.4 to 0.74 in the paper.
        progressive: Let the factor fall over the active steps.

    Raises:
        ValueError: A parameter is out of range; a pattern names no convolution (lists them).

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(5.0) | fl.Redilate(2.0, layers="down.**.conv1"))
        "cfg(5.0) | redilate(2.0, layers='down.**.conv1')"

    Source:
        He et al. (2023), arXiv:2310.07702.
    """

    factor: Annotated[float, Range(1, math.inf, closed="left")]
    layers: str | tuple[str, ...] = "all"
    until: Annotated[float, Range(0, 1)] = 0.6
    progressive: bool = False

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        if ctx.fraction >= self.until or self.factor == 1:
            return branch
        factor = self.factor
        if self.progressive:
            left = (self.until - ctx.fraction) / self.until
            factor = max(math.ceil(factor * left - 1e-9), 2)  # 3 + rounding is 3
        return dilated(branch, Dilation(self.layers, factor))
