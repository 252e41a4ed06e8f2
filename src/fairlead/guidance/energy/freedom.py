"""FreeDoM: the plain gradient through the network."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fairlead.guidance.algebra import Context, Scale, register
from fairlead.guidance.context import Weight
from fairlead.guidance.energy.term import EnergyLike
from fairlead.guidance.energy.training_free import TrainingFree, step_factor


@register("freedom", ids=("S128",), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class FreeDoM(TrainingFree):
    r"""Descends the energy of the clean estimate through the network.

    .. math:: x_\mathrm{next} = \mathrm{step}(x, D) - k \, \nabla_x E(D(x))

    on the variance-preserving path. The paper repeats steps in the middle of the trajectory
    ("time travel"): take it with the sampler ``recurrence``.

    * Cost: 0 NFE; one gradient of the energy and one backward through the network.
    * Neutral: ``k = 0``.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        k: Step size, one number or one a sample; it depends on the scale of the energy.
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: ``k`` is NaN or infinite.

    Example:
        >>> import fairlead as fl
        >>> str(fl.FreeDoM("measurement", 0.2) | fl.Interval(0.1, 0.9))
        "freedom('measurement', k=0.2) | interval(0.1, 0.9)"

    Source:
        Yu, Wang, Zhao, Ghanem, Zhang (2023), arXiv:2303.09833; as a corner of TFG,
        arXiv:2409.15761.
    """

    energy: EnergyLike
    k: Scale = 1.0
    branch: str = "cond"

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.k

    def differentiates(self, ctx: Context) -> bool:
        return True

    def variance(self, value: Tensor, ctx: Context) -> Weight:
        return step_factor(ctx)
