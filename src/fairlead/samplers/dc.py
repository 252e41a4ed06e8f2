"""DC-Solver: UniPC whose newest prediction is moved in time, by a ratio that was searched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from torch import Tensor

from fairlead.parameters import FINITE, Range, check_fields, choose
from fairlead.prediction import Prediction
from fairlead.samplers.base import Model, register
from fairlead.samplers.unipc import Point, UniPC

Variable = Literal["lam", "t", "sigma"]


@register("dc", ids=("S113",))
@dataclass(frozen=True)
class DC(UniPC):
    r"""UniPC with dynamic compensation.

    UniPC keeps predictions made at predicted points, but goes on from corrected ones, the more
    wrongly the larger the guidance scale. With the ``K + 1`` newest predictions ``m`` at times
    ``u``, the newest is replaced, for this step and those after it, by its Lagrange extrapolation
    to another time:

    .. math::
        u^* = u_{i-1} + r_i (u_i - u_{i-1}), \qquad
        m_i \gets \sum_{a=0}^{K} m_{i-a} \prod_{b \ne a} \frac{u^* - u_{i-b}}{u_{i-a} - u_{i-b}}

    * All ratios 1 is UniPC to the bit; 0 puts the prediction before in the newest's place.
    * One evaluation a step, as UniPC; keeps ``max(order, K + 1)`` predictions.
    * ``fl.search_ratios`` finds the ratios on a few samples; a ``RatioModel`` predicts them for
      other scales and numbers of steps.

    Args:
        order: As of ``unipc``.
        variant: As of ``unipc``.
        corrector: As of ``unipc``.
        lower_order_final: As of ``unipc``.
        ratios: ``r_i`` of the steps 2, 3, ... counted from 0; 1 where there are no more.
        compensation: ``K``, at least 1.
        variable: The time ``u``: ``lam = log(alpha/sigma)``, the schedule's ``t`` (what the
            released code takes), or ``sigma``. Where it is infinite nothing is replaced.

    Raises:
        ValueError: A parameter is out of range or has an unknown value.

    Source:
        Zhao, Ni, Zhang, Zhou, Lu (2024), arXiv:2409.03755.
    """

    ratios: Annotated[tuple[float, ...], FINITE] = ()
    compensation: Annotated[int, Range(1, math.inf, closed="left")] = 2
    variable: Variable = "lam"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(self.ratios))
        super().__post_init__()
        choose("dc", "variable", self.variable, ("lam", "t", "sigma"))

    def _kept(self, model: Model, points: list[Point]) -> list[Point]:
        points = points[: max(self.order, self.compensation + 1)]
        index = model.step - 2
        ratio = self.ratios[index] if 0 <= index < len(self.ratios) else 1.0
        return points if ratio == 1.0 else self.compensated(points, ratio)

    def compensated(self, points: list[Point], ratio: float | Tensor) -> list[Point]:
        """The points, newest first, with the newest prediction moved; a ratio may be a tensor."""
        used = points[: self.compensation + 1]
        at = [getattr(p.level, self.variable) for p in used]
        if len(used) <= self.compensation or not all(map(math.isfinite, at)):
            return points
        target = at[1] + ratio * (at[0] - at[1])
        ends: list[Tensor | None] = [None, None]
        for a, point in enumerate(used):
            weight: Any = 1.0
            for b, other in enumerate(at):
                if b != a:
                    weight = weight * (target - other) / (at[a] - other)
            for end, value in enumerate((point.p.denoise, point.p.renoise)):
                part = weight * value
                before = ends[end]
                ends[end] = part if before is None else before + part
        denoise, renoise = ends
        assert denoise is not None
        assert renoise is not None
        moved = Prediction(denoise, renoise)
        return [Point(points[0].level, moved), *points[1:]]


@dataclass(frozen=True)
class RatioModel:
    r"""Ratios of `dc` as a polynomial of step, scale and number of steps.

    .. math:: r_s = \sum_{k,j,m} \Phi_{kjm} \, (s/N)^k \, (w/12)^{2-j} \, (N/50)^{2-m}, \qquad
              j, m \in \{0, 1, 2\}

    for step ``s`` of ``N``, counted from 1, and 1 for ``s < 3``.

    Args:
        phi: ``Phi`` in order of ``k``, ``j``, ``m``, nine numbers for each power ``k``.

    Raises:
        ValueError: The number of coefficients is no multiple of nine, or one is not finite.

    Example:
        >>> import fairlead as fl
        >>> constant = fl.samplers.RatioModel([0.0] * 8 + [0.9])
        >>> constant.ratios(w=7.5, steps=5)
        (0.9, 0.9, 0.9)

    Source:
        Zhao, Ni, Zhang, Zhou, Lu (2024), arXiv:2409.03755, cascade polynomial regression.
    """

    phi: Annotated[tuple[float, ...], FINITE]

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", tuple(map(float, self.phi)))
        check_fields(self)
        if not self.phi or len(self.phi) % 9:
            raise ValueError(
                f"RatioModel: phi must be nine numbers for each power, got {len(self.phi)}"
            )

    @classmethod
    def fit(
        cls, searched: Sequence[tuple[float, Sequence[float]]], degree: int = 2
    ) -> "RatioModel":
        """Least squares, of least norm, on searched ratios.

        Args:
            searched: Guidance scale and ratios of each search; a search with ``N`` steps has
                ``N - 2`` ratios.
            degree: Largest power of the step.

        Raises:
            ValueError: There is nothing to fit, or the degree is negative.
        """
        if degree < 0 or not any(len(ratios) for _, ratios in searched):
            raise ValueError(
                f"RatioModel: needs at least one ratio and a degree of at least 0, got {degree}"
            )
        rows, targets = [], []
        for w, ratios in searched:
            steps = len(ratios) + 2
            for step, ratio in enumerate(ratios, 3):
                rows.append(_row(step, steps, w, degree))
                targets.append(ratio)
        return cls(tuple(np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]))

    def ratios(self, w: float, steps: int) -> tuple[float, ...]:
        """The ratios for a scale and a number of steps."""
        degree = len(self.phi) // 9 - 1
        rows = [_row(step, steps, w, degree) for step in range(3, steps + 1)]
        return tuple(float(np.dot(row, self.phi)) for row in rows)

    def sampler(self, w: float, steps: int, **options: Any) -> DC:
        """The sampler for a scale and a number of steps; options as of `DC`."""
        return DC(ratios=self.ratios(w, steps), **options)


def _row(step: int, steps: int, w: float, degree: int) -> list[float]:
    """The monomials of a step, in the order of `phi`."""
    share, scale, size = step / steps, w / 12, steps / 50
    return [
        share**k * scale ** (2 - j) * size ** (2 - m)
        for k in range(degree + 1)
        for j in range(3)
        for m in range(3)
    ]
