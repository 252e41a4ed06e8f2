"""Dynamic thresholding of every branch before they are combined."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Range, Schedule, register
from fairlead.guidance.branch import Branch, Output


@dataclass(frozen=True)
class Clipped(Output):
    """A clean estimate clipped to a quantile of its own absolute values, per sample."""

    quantile: float
    floor: float
    ceiling: float

    def __call__(self, prediction: Tensor, ctx: Context) -> Tensor:
        flat = prediction.flatten(1).abs()
        limit = torch.quantile(flat, self.quantile, dim=1).clamp(self.floor, self.ceiling)
        limit = limit.reshape(-1, *[1] * (prediction.ndim - 1))
        # what is not finite stays, so that it is found and not clipped away
        return prediction.clamp(-limit, limit).where(prediction.isfinite(), prediction)


@register("branch_threshold", ids=("S059",), neutral="1.0, floor=0.0")
@dataclass(frozen=True)
class BranchThreshold(Schedule):
    r"""Clips the clean estimate of each branch to a quantile of its own, before combining.

    With ``s`` the quantile of ``|D|`` of one branch and sample, over all its numbers:

    .. math:: D \gets \mathrm{clip}(D, -s, s), \qquad
              s \gets \mathrm{clip}(s, \text{floor}, \text{ceiling})

    Every branch of the terms before it is clipped, and the base they are added to; ``threshold``
    clips the sum instead.

    * Space: x0.
    * Cost: 0 NFE.
    * Neutral: ``quantile = 1`` with ``floor = 0`` and no ceiling.
    * Defaults by family: 0.99 for faces from speech.

    Args:
        quantile: In (0, 1].
        floor: Least ``s``, in units of x0.
        ceiling: Largest ``s``.

    Raises:
        ValueError: A parameter is out of range, ``floor`` is above ``ceiling``, or it stands
            inside a sum, where it would clip the base of one summand only.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.BranchThreshold(0.9))
        'cfg(4.0) | branch_threshold(quantile=0.9)'

    Source:
        Sun, Lv, Ye, Lin, Sheng, Wen, Yu, Liu (2023), arXiv:2310.00434.
    """

    quantile: Annotated[float, Range(0, 1, closed="right")] = 0.99
    floor: Annotated[float, Range(0, inf, closed="left")] = 1.0
    ceiling: Annotated[float, Range(0, inf, closed="right")] = inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floor > self.ceiling:
            raise ValueError(
                f"branch_threshold: floor must be at most ceiling = {self.ceiling}, got "
                f"{self.floor}"
            )

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        return branch.followed(Clipped(self.quantile, self.floor, self.ceiling))
