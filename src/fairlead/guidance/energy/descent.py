"""A step down an energy on the guided clean estimate, stronger towards the end."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
from torch import Tensor

from fairlead.energy.base import Energy, of
from fairlead.guidance.algebra import Context, Predictions, Range, Rule, Scale, register
from fairlead.guidance.energy.term import EnergyLike, ascent


@register("descent", ids=("S072",), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class Descent(Rule):
    r"""Moves the guided clean estimate down an energy, a little at first and more at the end.

    At step ``i`` of ``N``, with ``D`` what the terms and rules before it have made:

    .. math:: D \gets D - s \, q^{N - 1 - i} \, \nabla E(D)

    Both ends of the prediction move: the sampler takes the noise that the new estimate leaves.
    ``mpgd`` judges the conditional estimate instead, and keeps its noise. At the last step what
    comes before the ``keep`` last numbers (of the dimension behind the batch) may be moved less,
    by ``1/damp``, so that a pose stays and its place is mended.

    * Space: x0. Where no term acts it acts all the same.
    * Cost: 0 NFE and no backward through the network; one gradient of the energy.
    * Neutral: ``s = 0``, or an energy that is constant there.
    * Defaults by family: two hands (64 numbers, the last 3 the translation) ``w = 1.1`` on the
      last 9, ``damp=10, keep=3``, 42 steps: ``cfg(1.1) | part(-9) | descent('penetration',
      damp=10, keep=3)`` with ``fl.energy.Penetration``.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        s: Step size at the last step, one number or one a sample.
        decay: ``q`` in (0, 1]; 1 is the same at every step.
        damp: Divisor of the last step for all but the last numbers, >= 1.
        keep: How many last numbers that step moves in full; at least 1, where ``damp`` is not 1.

    Raises:
        ValueError: A parameter is out of range; the energy judges noisy samples; there are not
            more than ``keep`` numbers.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.1) | fl.Descent("measurement", 0.5))
        "cfg(1.1) | descent('measurement', s=0.5)"

    Source:
        Lee, Saito, Nam, Sung, Kim (2024), arXiv:2403.17422; constants as in their code.
    """

    alone: ClassVar[bool] = True
    gradient: ClassVar[bool] = True

    energy: EnergyLike
    s: Scale = 7.0
    decay: Annotated[float, Range(0, 1, closed="right")] = 0.9
    damp: Annotated[float, Range(1, math.inf, closed="left")] = 1.0
    keep: Annotated[int, Range(0, math.inf, closed="left")] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", of(self.name, self.energy))
        super().__post_init__()
        if self.damp != 1 and not self.keep:
            raise ValueError(
                "descent: keep must be at least 1 where damp is not 1, or all numbers are damped "
                f"alike: lower s instead; got damp = {self.damp:g}"
            )

    @property
    def energies(self) -> tuple[str, ...]:
        """Names of the energies that it asks for."""
        return (cast(str, self.energy),)

    def suits(self, energy: Energy) -> None:
        """Refuses an energy of noisy samples.

        Raises:
            ValueError: Names the energy.
        """
        if energy.noisy:
            raise ValueError(
                f"descent: the energy {energy.name!r} judges noisy samples, but clean estimates "
                "are what this rule shows it; use fl.ClassifierGuidance"
            )

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if not any(self.s) if isinstance(self.s, tuple) else self.s == 0:
            return update
        left = ctx.run.steps - 1 - ctx.step
        guided = predictions.base + update
        _, up = ascent(self.name, self.energies[0], guided, ctx)
        size = ctx.per_sample(self.s) if isinstance(self.s, tuple) else self.s
        shift = up * (size * self.decay**left)
        if self.damp != 1:
            if self.keep >= guided.shape[1]:
                raise ValueError(
                    f"descent: keep must be below {guided.shape[1]}, the size of a sample's first "
                    f"dimension, got {self.keep}"
                )
            if left == 0:
                last = shift[:, -self.keep :]
                shift = torch.cat([shift[:, : -self.keep] / self.damp, last], 1)
        return update + shift
