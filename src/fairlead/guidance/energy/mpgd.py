"""Manifold-preserving guidance: the gradient at the clean estimate alone."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from fairlead.guidance.algebra import Context, Scale, register
from fairlead.guidance.energy.term import EnergyLike
from fairlead.guidance.energy.training_free import TrainingFree
from fairlead.parameters import Range


@register("mpgd", ids=("S128",), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class MPGD(TrainingFree):
    r"""Descends the energy at the clean estimate and keeps the predicted noise.

    .. math:: D \gets D - \zeta \, \nabla E(D), \qquad
              x_\mathrm{next} = \alpha_\mathrm{next} D + \sigma_\mathrm{next} \, \epsilon(x)

    No backward passes the network, so it costs little and takes judges of any size. The paper's
    projection on the manifold of an autoencoder is not part of it.

    * Cost: 0 NFE; ``iterations`` gradients of the energy.
    * Neutral: ``zeta = 0``.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        zeta: Step size, one number or one a sample; it depends on the scale of the energy.
        iterations: Steps, >= 1.
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.MPGD("measurement", 0.2))
        "mpgd('measurement', zeta=0.2)"

    Source:
        He, Murata, Lai, Takida, Uesaka, Kim, Liao, Mitsufuji, Kolter, Salakhutdinov, Ermon (2024),
        arXiv:2311.16424; as a corner of TFG, arXiv:2409.15761.
    """

    energy: EnergyLike
    zeta: Scale = 1.0
    iterations: Annotated[int, Range(1, math.inf, closed="left")] = 1
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations != int(self.iterations):
            raise ValueError(f"mpgd: iterations must be a whole number, got {self.iterations}")
        if self.iterations > 1 and isinstance(self.zeta, tuple):
            raise ValueError("mpgd: several iterations take one zeta for all samples")

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        if self.iterations > 1:
            return 1.0 if self.zeta else 0.0
        return self.zeta

    @property
    def inner(self) -> int:
        return self.iterations

    def mean(self, ctx: Context) -> float:
        # the weight of the term is zeta, unless later steps depend on it
        return 1.0 if self.iterations == 1 else float(self.zeta)  # type: ignore[arg-type]
