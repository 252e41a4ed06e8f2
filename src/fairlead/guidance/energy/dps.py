"""Diffusion posterior sampling."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Scale, register
from fairlead.guidance.context import Weight
from fairlead.guidance.energy.term import EnergyLike, per_sample
from fairlead.guidance.energy.training_free import TrainingFree, step_factor
from fairlead.parameters import Range


@register("dps", ids=("S128",), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class DPS(TrainingFree):
    r"""Descends the energy of the clean estimate through the network, at a normalised length.

    .. math:: x_\mathrm{next} = \mathrm{step}(x, D) - \frac{\zeta}{|E(D)|^p} \, \nabla_x E(D(x))

    on the variance-preserving path. With ``E = ||y - A x0||^2`` the power 1/2 divides by the
    residual's length, as the paper does; a Gaussian ``fl.energy.Linear`` of deviation ``noise`` is
    that energy over ``2 noise^2``, which multiplies the step by ``1 / (sqrt(2) noise)``. The
    power 1 divides by the loss itself, and 0 not at all.

    * Cost: 0 NFE; one gradient of the energy and one backward through the network.
    * Neutral: ``zeta = 0``. A sample whose energy is 0 is left alone.
    * Defaults by family: ``zeta`` 0.1 to 1 on images for the squared residual.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        zeta: Step size, one number or one a sample.
        power: ``p`` in [0, 1].
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.DPS("measurement", 0.5))
        "dps('measurement', zeta=0.5)"

    Source:
        Chung, Kim, Mccann, Klasky, Ye (2023), arXiv:2209.14687; as a corner of TFG,
        arXiv:2409.15761, whose code takes ``power=1``.
    """

    energy: EnergyLike
    zeta: Scale = 1.0
    power: Annotated[float, Range(0, 1)] = 0.5
    branch: str = "cond"

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.zeta

    def differentiates(self, ctx: Context) -> bool:
        return True

    def variance(self, value: Tensor, ctx: Context) -> Weight:
        size = value.abs() ** self.power
        safe = torch.where(size > 0, 1 / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)
        assert ctx.x is not None
        return step_factor(ctx) * per_sample(safe, ctx.x.to(size.dtype))
