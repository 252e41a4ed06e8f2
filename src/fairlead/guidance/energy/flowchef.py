"""FlowChef: steering straight flows without a backward through the network."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.term import EnergyLike, GradientTerm
from fairlead.parameters import FINITE, Range


@register("flowchef", ids=("S105",), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class FlowChef(GradientTerm):
    r"""Moves the sample against the gradient of the energy at its clean estimate.

    The velocity ``u`` is frozen, so on a straight path ``D = x - t u`` has the derivative 1 in
    ``x`` and the network's Jacobian drops out:

    .. math:: x \gets x - s \, \nabla E(x - t u) \;\; (\mathtt{iterations} \text{ times}), \qquad
              x_\mathrm{next} = x + (t_\mathrm{next} - t) \, u .

    On other schedules ``D = (x - sigma u) / (alpha + sigma)``. It is exact where trajectories are
    straight, and a heuristic on curved ones.

    * Cost: 0 NFE; ``iterations`` gradients of the energy, no backward through the network.
    * Neutral: ``s = 0``. To stop before the end, pipe it through ``interval``.
    * Defaults by family: 0.5 per pixel of a mean squared error, Euler steps.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        s: Step size; it depends on the scale of the energy.
        iterations: Steps with the same velocity, >= 1.
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.FlowChef("measurement", 0.05))
        "flowchef('measurement', s=0.05)"

    Source:
        Patel, Wen, Metaxas, Yang (2024), arXiv:2412.00100.
    """

    energy: EnergyLike
    s: Annotated[float, FINITE] = 1.0
    iterations: Annotated[int, Range(1, math.inf, closed="left")] = 1
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations != int(self.iterations):
            raise ValueError(f"flowchef: iterations must be a whole number, got {self.iterations}")

    @property
    def strength(self) -> float:
        return 1.0 if self.s else 0.0

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        clean = predictions[branch]
        slope = 1 / (ctx.alpha + ctx.sigma)  # dD/dx at a frozen velocity
        moved = torch.zeros_like(clean)
        for _ in range(self.iterations):
            gradient = self.log_f(clean + slope * moved, ctx)[1]
            moved = moved + self.s * slope * gradient
        return moved / ctx.target.alpha
