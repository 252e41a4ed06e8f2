"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from fairlead.parameters import choose
from fairlead.prediction import Prediction
from fairlead.samplers.base import Model, Sampler, register, transfer
from fairlead.schedules import Level


class Point(NamedTuple):
    """A level where the model was evaluated, and the prediction there."""

    level: Level
    p: Prediction


class Taken(NamedTuple):
    """The last predictor step: its start, its end, and the points it used, newest first."""

    x: Tensor
    reached: Tensor
    points: list[Point]
    order: int


@register("unipc", ids=("XA5",))
@dataclass(frozen=True)
class UniPC(Sampler):
    r"""Multistep in ``lam`` on the clean estimate; the next prediction also corrects this step.

    With ``h = lam_t - lam_s``, ``z = -h``, ``r_k = (lam_k - lam_s) / h`` for older points,
    ``E_k = (m_k - m_s) / r_k`` and ``B = z`` (bh1) or ``e^z - 1`` (bh2):

    .. math::
        x_t = \frac{\sigma_t}{\sigma_s} x - \alpha_t (e^{-h} - 1) m_s
              - \alpha_t B \sum_k \rho_k E_k, \qquad
        \sum_k r_k^{i-1} \rho_k = i! \, \psi_{i+1} / B, \quad
        \psi_j = z \sum_{n \ge 0} z^n / (n + j)!

    The corrector solves the same equations with the point ``r = 1``, the prediction at
    ``x_t``, among them, and restarts from the step's beginning. With two ends the sample moves to
    ``denoise``; differences take ``renoise``.

    * Order ``order`` without, one more with the corrector, after the first steps, whose lower
      order limits the whole to 2 without and 3 with the corrector in the limit of small steps.
      One evaluation a step; keeps ``order`` predictions and two samples.
    * The order grows from 1 at the start, and falls to 1 at the end if ``lower_order_final``;
      steps from ``alpha = 0`` or to ``sigma = 0`` are always of first order.
    * The corrector is left out if the sample was changed between two steps, since it would
      undo the change.

    Args:
        order: Order of the predictor, 2 or 3; 2 for guided sampling.
        variant: ``bh2``, or ``bh1`` for few unguided steps.
        corrector: Whether steps are corrected.
        lower_order_final: Whether the order falls to 1 over the last steps.

    Raises:
        ValueError: A parameter has an unknown value.

    Source:
        Zhao, Bai, Rao, Zhou, Lu (2023), arXiv:2302.04867.
    """

    order: Literal[2, 3] = 2
    variant: Literal["bh2", "bh1"] = "bh2"
    corrector: bool = True
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (2, 3):
            raise ValueError(f"unipc: order must be 2 or 3, got {self.order}")
        choose("unipc", "variant", self.variant, ("bh2", "bh1"))

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        x, points, order = self.prepared(model, x, s, t)
        points = self._kept(model, points)
        reached = self.advance(x, points, t, order)
        model.memory["unipc"] = Taken(x, reached, points, order)
        return reached

    def prepared(
        self, model: Model, x: Tensor, s: Level, t: Level
    ) -> tuple[Tensor, list[Point], int]:
        """The corrected sample, the known points, newest first, and the order of the step."""
        new = Point(s, model(x, s))
        last: Taken | None = model.memory.get("unipc")
        if last is not None and self.corrector and x is last.reached:
            x = self.advance(last.x, last.points, s, last.order, new)
        points = [new, *(last.points if last else [])]
        return x, points, self._order(model, points, t)

    def _kept(self, model: Model, points: list[Point]) -> list[Point]:
        """The points that later steps use, newest first."""
        return points[: self.order]

    def _order(self, model: Model, points: list[Point], t: Level) -> int:
        if t.sigma == 0:
            return 1
        known = sum(math.isfinite(p.level.lam) for p in points[: self.order])
        left = model.steps - model.step if self.lower_order_final else self.order
        return max(1, min(self.order, known, left))

    def advance(
        self, x: Tensor, points: list[Point], t: Level, order: int, new: Point | None = None
    ) -> Tensor:
        """From the newest point to `t`: predicted, or corrected with the prediction at `t`."""
        start, older = points[0], points[1:order]
        x = transfer(x, start.p, start.level, t)
        h = t.lam - start.level.lam
        if math.isinf(h) or not (older or new):
            return x
        used = [*older, new] if new else older
        r = [(p.level.lam - start.level.lam) / h for p in used]
        scale = -h if self.variant == "bh1" else math.expm1(-h)
        if len(used) == 1:
            rho = [0.5]
        else:
            rows = [[rk**i for rk in r] for i in range(len(used))]
            right = [math.factorial(i + 1) * _psi(i + 2, -h) / scale for i in range(len(used))]
            rho = np.linalg.solve(rows, right).tolist()
        for weight, rk, point in zip(rho, r, used, strict=True):
            difference = point.p.renoise - start.p.renoise
            x = x - t.alpha * scale * weight / rk * difference
        return x


def _psi(j: int, z: float) -> float:
    """`psi_1 = e^z - 1`, `psi_(j+1) = psi_j / z - 1/j!`; the series where that cancels."""
    if abs(z) < 1:
        return z * sum(z**n / math.factorial(n + j) for n in range(18))
    psi = math.expm1(z)
    for k in range(1, j):
        psi = psi / z - 1 / math.factorial(k)
    return psi
