"""Guidance in a limited interval of noise levels or steps."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Range, Schedule, register
from fairlead.guidance.context import Weight
from fairlead.parameters import choose


@register("interval", ids=("XC1",), neutral="0.0, 1.0")
@dataclass(frozen=True)
class Interval(Schedule):
    r"""Keeps the terms before it inside an interval; outside, the base is evaluated alone.

    .. math:: w(\cdot) = w \text{ inside, } 1 \text{ outside}

    * Cost: outside the interval the terms cost nothing.
    * Neutral: ``interval(0, 1)``; an empty interval is conditional sampling.

    Args:
        low: Lower end.
        high: Upper end.
        unit: ``fraction`` of the steps, inside if ``low <= i/N < high``; ``sigma``, that is
            ``sigma/alpha``, inside if ``low < sigma <= high``; or ``log_snr``, inside if
            ``low <= log_snr < high``. The paper's ImageNet-512 values are (0.19, 1.61] in sigma.
        per: ``evaluation``, each stage of a solver by its own level; or ``step``, all stages by
            the level at which the step begins, as the official sampler does.

    Raises:
        ValueError: An end is NaN, ``low`` is above ``high``, or ``unit`` is unknown.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.Interval(0.28, 5.42, unit="sigma"))
        "cfg(4.0) | interval(0.28, 5.42, unit='sigma')"

    Source:
        Kynkaanniemi et al. (2024), arXiv:2404.07724.
    """

    low: Annotated[float, Range(-inf, inf)]
    high: Annotated[float, Range(-inf, inf)]
    unit: Literal["fraction", "sigma", "log_snr"] = "fraction"
    per: Literal["evaluation", "step"] = "evaluation"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("interval", "unit", self.unit, ("fraction", "sigma", "log_snr"))
        choose("interval", "per", self.per, ("evaluation", "step"))
        if self.low > self.high:
            raise ValueError(f"interval: low must be at most high = {self.high}, got {self.low}")

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        if self.unit == "fraction":
            return weight if self.low <= ctx.fraction < self.high else 0.0
        level = ctx.start if self.per == "step" and ctx.start is not None else ctx.level
        if isinstance(level.sigma, Tensor):  # times that differ between samples
            ratio = level.sigma / level.alpha
            at = ratio if self.unit == "sigma" else -2 * ratio.log()
            return weight * self._inside(at).to(ratio.dtype)
        at = level.log_snr if self.unit == "log_snr" else _ratio(level.sigma, level.alpha)
        return weight if self._inside(torch.tensor(at, dtype=torch.float64)) else 0.0

    def _inside(self, at: Tensor) -> Tensor:
        if self.unit == "sigma":
            return (self.low < at) & (at <= self.high)
        return (self.low <= at) & (at < self.high)


def _ratio(sigma: float, alpha: float) -> float:
    return sigma / alpha if alpha else inf
