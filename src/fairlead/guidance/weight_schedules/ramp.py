"""Progressive guidance: a weight that moves from one factor to another."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

from fairlead.guidance.algebra import FINITE, Context, Range, Schedule, register
from fairlead.guidance.context import Weight


@register("ramp", ids=("S049", "S102"), neutral="1.0, 1.0")
@dataclass(frozen=True)
class Ramp(Schedule):
    r"""Moves the weight of the terms from one factor to another over the run.

    With ``tau`` from 0 (first, noisiest step) to 1 (last) and ``a``, ``b`` the factors:

    .. math:: w(\tau) = 1 + (w - 1) \, (a + (b - a) \, \tau^p)

    Guidance from ``w_0`` to ``w_1`` is ``cfg(2) | ramp(w_0 - 1, w_1 - 1)``.

    * Progressive guidance, for objects from one view: a falling ramp, since geometry is made
      early and wants a large scale, texture is made late and wants a small one. The ends were
      not published.
    * Token maps of growing size (Switti): ``cfg(1 + k) | ramp(0, 1) | interval(0, i/K)``, that is
      ``w = 1 + k r`` at scale ``r (K - 1)`` and no guidance from scale ``i`` on; ``k = 6`` and
      ``i = 10`` or 11. Steps are scales there, and the domain is ``logprob``.
    * Cost: 0 NFE; where the factor is 0 the term costs nothing.
    * Neutral: ``a = b = 1``.

    Args:
        first: Factor in the first step.
        last: Factor in the last step.
        power: The exponent ``p``; 1 is a straight line.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(3.0) | fl.Ramp(2.0, 0.0))
        'cfg(3.0) | ramp(2.0, 0.0)'

    Source:
        Weng, Yang, Wang, Li, Zhang, Chen, Zhang (2023), arXiv:2310.08092; Voronov, Kuznedelev,
        Khoroshikh, Khrulkov, Baranchuk (2024), arXiv:2412.01819.
    """

    first: Annotated[float, FINITE]
    last: Annotated[float, FINITE]
    power: Annotated[float, Range(0, inf, closed="neither")] = 1.0

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        share: float = ctx.progress**self.power
        return weight * (self.first + (self.last - self.first) * share)
