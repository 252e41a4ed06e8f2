"""Oscillating guidance: high and low weights in turn."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Range, Schedule, register
from fairlead.guidance.context import Weight


@register("oscillating", ids=("S088",), neutral="hold=1.0")
@dataclass(frozen=True)
class Oscillating(Schedule):
    r"""Holds the scale at first, then lowers it at every second step.

    With ``i`` from 0 and ``n = 2`` (``every``), so that even steps are low:

    .. math:: w_i = \begin{cases} w_\mathrm{low} & i / N \ge \mathrm{hold},\ n \nmid i + 1 \\
                                  w & \text{else} \end{cases}

    The high scale is that of the terms before it. High weights follow the condition, the low ones
    in between take back saturation.

    * Effective ``w``: both are scales, 1 is conditional. Whether the paper's 15 and 1 are meant so
      or as ``1 + w`` is not certain; other implementations read them as scales.
    * Cost: 0 NFE; at ``low = 1`` the low steps cost one evaluation.
    * Neutral: ``hold = 1`` or ``every = 1``; ``low`` equal to the scale of the terms is constant
      guidance.
    * Defaults by family: Imagen Video 15 and 1, below 80x48 pixels; Stable unCLIP's demo holds for
      0.1.

    Args:
        low: Scale at the low steps after the hold, in the convention of ``cfg``: the strength of
            a term is then ``low - 1``, where it is not off.
        hold: Share of the steps, in [0, 1], in which the scale stays high.
        restart: Whether multistep solvers drop their history at each change, so that they take
            first-order steps.
        every: Stride ``n`` of the high steps: the ``n``-th, ``2n``-th, ... step.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(15.0) | fl.Oscillating())
        'cfg(15.0) | oscillating()'

    Source:
        Ho et al. (2022), arXiv:2210.02303, section on oscillating guidance.
    """

    low: Annotated[float, FINITE] = 1.0
    hold: Annotated[float, Range(0, 1)] = 0.1
    restart: bool = False
    every: Annotated[int, Range(1, math.inf, closed="left")] = 2

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        step = ctx.step
        if ctx.fraction < self.hold:
            return weight
        if self.restart and ctx.run.stage == 0 and self._changes(step, ctx.run.steps):
            ctx.run.drop_history()
        if self._high(step):
            return weight
        if isinstance(weight, Tensor):  # a sample that is not guided stays so
            return torch.where(weight == 0, weight, self.low - 1.0)
        return self.low - 1.0 if weight else weight

    def _high(self, step: int) -> bool:
        """Whether a step after the hold has the high scale."""
        return (step + 1) % self.every == 0

    def _changes(self, step: int, steps: int) -> bool:
        """Whether the scale of a step differs from that of the one before."""
        if (step - 1) / steps < self.hold:  # the first after the hold
            return not self._high(step)
        return self._high(step) != self._high(step - 1)
