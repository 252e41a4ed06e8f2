"""Weight schedules: the guidance scale as a curve over the run."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Range, Schedule, register
from fairlead.guidance.context import Weight
from fairlead.parameters import choose

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 2 * t,
    "inverse_linear": lambda t: 2 * (1 - t),
    "cosine": lambda t: 1 - math.cos(math.pi * t),
    "sine": lambda t: 1 + math.cos(math.pi * t),
    "valley": lambda t: 2 * abs(1 - 2 * t),
    "peak": lambda t: 2 * (1 - abs(1 - 2 * t)),
    "powered_cosine": lambda t: (1 - math.cos(math.pi * t)) / 2,
}


@register("curve", ids=("S004",), neutral="'constant'")
@dataclass(frozen=True)
class Curve(Schedule):
    r"""Spreads a weight over the run, most shapes with the mean of the constant.

    With ``tau`` from 0 (first, noisiest step) to 1 (last) and ``omega = w - 1``, by default the
    schedule acts on ``omega``, as the paper's equation has it (reading A):

    .. math:: w(\tau) = 1 + \max(k, \omega \, m(\tau))

    where ``m`` is 1 (``constant``), ``2 tau`` (``linear``), ``2 (1 - tau)`` (``inverse_linear``),
    ``1 - cos(pi tau)`` (``cosine``, rising), ``1 + cos(pi tau)`` (``sine``, falling),
    ``2 |1 - 2 tau|`` (``valley``), ``2 - 2 |1 - 2 tau|`` (``peak``) or
    ``(1 - cos(pi tau^p))/2`` (``powered_cosine``, which ends at ``w`` and has another mean).

    * Cost: 0 NFE; where the weight is 0 the term costs nothing.
    * Neutral: ``constant``. ``w = 1`` is conditional at every step under reading A.

    Args:
        shape: Name of ``m``. The paper recommends ``linear`` and ``cosine``.
        floor: The clamp ``k`` on the quantity that is scheduled; `None` is no clamp. The paper
            takes 1.1 on CIFAR-10, 2 on SD 1.5, 4 on SDXL.
        power: ``p`` of ``powered_cosine``.
        reading: ``A``; or ``B``, ``w(tau) = max(k, w m(tau))``, which starts unconditional where
            ``m`` starts at 0.

    Raises:
        ValueError: A parameter is out of range, or a shape is unknown.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.Curve("linear"))
        "cfg(4.0) | curve('linear')"

    Source:
        Wang, Dufour, Andreou, Cani, Abrevaya, Picard, Kalogeiton (2024), arXiv:2404.13040.
    """

    shape: str
    floor: Annotated[float | None, FINITE] = None
    power: Annotated[float, Range(0, math.inf, closed="neither")] = 1.0
    reading: Literal["A", "B"] = "A"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("curve", "shape", self.shape, SHAPES)
        choose("curve", "reading", self.reading, ("A", "B"))

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        tau = ctx.progress**self.power if self.shape == "powered_cosine" else ctx.progress
        shift = 1.0 if self.reading == "B" else 0.0
        scheduled = (weight + shift) * SHAPES[self.shape](tau)
        if self.floor is not None:
            if isinstance(scheduled, Tensor):
                scheduled = scheduled.clamp(min=self.floor)
            else:
                scheduled = max(self.floor, scheduled)
        return scheduled - shift
