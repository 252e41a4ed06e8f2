"""Universal guidance: forward through the network, backward at the clean estimate."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.term import EnergyLike, GradientTerm, score_shift
from fairlead.parameters import FINITE, Range, choose


@register("ugd", ids=("XP2", "S128"), neutral="'measurement', 0.0")
@dataclass(frozen=True)
class UGD(GradientTerm):
    r"""Universal guidance by any judge of clean samples.

    .. math::
        \epsilon' &= \epsilon + s \, \sigma \nabla_x E(D(x)) \qquad \text{(forward)}, \\
        \Delta &\gets \Delta - \mu \nabla E(D' + \Delta)
        \;\; (m \text{ times}), \qquad
        \epsilon' \gets \epsilon' - \frac{\alpha}{\sigma} \Delta \qquad \text{(backward)}.

    ``D'`` belongs to the shifted noise. Both ends of the prediction move, as under classifier
    guidance. Repeat steps with the sampler ``recurrence``.

    * Cost: 0 NFE; ``1 + m`` gradients of the energy and one backward through the network.
    * Neutral: ``s = 0, m = 0``. Nothing is added where ``alpha = 0``.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        s: Forward scale; it depends on the scale of the energy.
        m: Backward steps, >= 0.
        mu: Step size of the backward steps; ``None`` takes ``s``.
        start: Where the backward steps start: ``shifted``, ``D'``, as in the paper, or ``plain``,
            ``D``, as TFG has it.
        branch: Condition state whose clean estimate is judged; with text models the paper
            takes ``null``.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.UGD("measurement", 2.0, m=3))
        "ugd('measurement', s=2.0, m=3)"

    Source:
        Bansal, Chu, Schwarzschild, Sengupta, Goldblum, Geiping, Goldstein (2023),
        arXiv:2302.07121, with plain gradient steps; ``plain`` is that of arXiv:2409.15761.
    """

    energy: EnergyLike
    s: Annotated[float, FINITE] = 1.0
    m: Annotated[int, Range(0, math.inf, closed="left")] = 0
    mu: Annotated[float | None, FINITE] = None
    start: Literal["shifted", "plain"] = "shifted"
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "start", self.start, ("shifted", "plain"))
        if self.m != int(self.m):
            raise ValueError(f"ugd: m must be a whole number, got {self.m}")

    @property
    def strength(self) -> float:
        return 1.0 if self.s or (self.m and self.rate) else 0.0

    @property
    def rate(self) -> float:
        """Step size of the backward steps."""
        return self.s if self.mu is None else self.mu

    @property
    def apart(self) -> bool:
        return False

    def differentiates(self, ctx: Context) -> bool:
        return self.s != 0

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        clean = predictions[branch]
        gradient = self.log_f(clean, ctx)[1]
        forward = 0 * clean
        if self.s:
            forward = score_shift(self.s * ctx.pull(branch, gradient), ctx)
        begin = clean + forward if self.start == "shifted" else clean
        moved = 0 * clean
        for i in range(self.m):
            if i or self.start == "shifted":
                gradient = self.log_f(begin + moved, ctx)[1]
            moved = moved + self.rate * gradient
        return forward + moved
