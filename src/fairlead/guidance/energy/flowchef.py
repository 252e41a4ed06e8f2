"""FlowChef: steering straight flows without a backward through the network."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from fairlead.energy.base import Energy
from fairlead.guidance.algebra import Context, Predictions, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.term import Adam, EnergyLike, GradientTerm
from fairlead.parameters import FINITE, Range, choose


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

    With ``along="residual"`` a linear measurement ``y`` shaped like the sample is followed without
    a gradient, ``x <- x + s (y - A D)``.

    * Cost: 0 NFE; ``iterations`` gradients of the energy, no backward through the network.
    * Neutral: ``s = 0``. To stop before the end, pipe it through ``interval``.
    * Defaults by family: 0.5 per pixel of a mean squared error, Euler steps.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        s: Step size; it depends on the scale of the energy.
        iterations: Steps with the same velocity, >= 1.
        optimiser: ``gradient``, or ``adam``, begun anew at each step as in the authors' code for
            latents: one iteration is then ``s`` times the sign of the gradient.
        along: What is followed: the ``gradient``, or the ``residual`` of ``fl.energy.Linear``.
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: A parameter is out of range; there is no residual to follow.

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
    optimiser: Literal["gradient", "adam"] = "gradient"
    along: Literal["gradient", "residual"] = "gradient"
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "optimiser", self.optimiser, ("gradient", "adam"))
        choose(self.name, "along", self.along, ("gradient", "residual"))
        if self.iterations != int(self.iterations):
            raise ValueError(f"flowchef: iterations must be a whole number, got {self.iterations}")

    def suits(self, energy: Energy) -> None:
        super().suits(energy)
        if self.along == "residual" and not hasattr(energy, "residual"):
            raise ValueError(
                f"flowchef: the energy {energy.name!r} has no residual to follow; give "
                "fl.energy.Linear, or along='gradient'"
            )

    @property
    def strength(self) -> float:
        return 1.0 if self.s else 0.0

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        clean = predictions[branch]
        slope = 1 / (ctx.alpha + ctx.sigma)  # dD/dx at a frozen velocity
        moved, adam = torch.zeros_like(clean), Adam()
        for _ in range(self.iterations):
            step = self.direction_at(clean + slope * moved, slope, ctx)
            moved = moved + self.s * (adam(step) if self.optimiser == "adam" else step)
        return moved / ctx.target.alpha

    def direction_at(self, z: Tensor, slope: Any, ctx: Context) -> Tensor:
        """What the sample follows where its clean estimate is `z`."""
        if self.along == "gradient":
            step: Tensor = slope * self.log_f(z, ctx)[1]
            return step
        energy: Any = ctx.run.energy(self.name, self.energies[0])
        residual: Tensor = energy.residual(z)
        if residual[0].numel() != z[0].numel():
            raise ValueError(
                f"flowchef: the residual of {energy.name!r} has {residual[0].numel()} numbers and "
                f"a sample {z[0].numel()}; only along='gradient' serves it"
            )
        return residual.reshape(z.shape)
