"""Universal guidance: forward through the network, backward at the clean estimate."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from torch import Tensor

from fairlead.energy.base import of
from fairlead.guidance.algebra import Context, Predictions, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.term import (
    Adam,
    EnergyLike,
    GradientTerm,
    ascent,
    per_sample,
    score_shift,
)
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
    guidance. Repeat steps with the sampler ``recurrence``, the ``k`` of the paper.

    * Cost: 0 NFE; ``1 + m`` gradients of the energy and one backward through the network.
    * Neutral: ``s = 0, m = 0``. Nothing is added where ``alpha = 0``.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        s: Forward scale; it depends on the scale of the energy.
        m: Backward steps, >= 0.
        mu: Step size of the backward steps; ``None`` takes ``s``.
        start: Where the backward steps start: ``shifted``, ``D'``, as in the paper, or ``plain``,
            ``D``, as TFG has it.
        optimiser: Of the backward steps: ``gradient``, or ``adam`` as in the paper's code, whose
            steps are about ``mu`` long in each number whatever the scale of the energy.
        clamp: Bound on the numbers of ``D' + Delta`` in the backward steps; 1 for images in
            [-1, 1], ``None`` for none.
        cutoff: Energy at which a sample needs no further backward step.
        backward: Energy of the backward steps, where it is another one, such as
            ``energy + 0.1 * fl.energy.TotalVariation()``.
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
        arXiv:2302.07121; ``plain`` is that of arXiv:2409.15761.
    """

    energy: EnergyLike
    s: Annotated[float, FINITE] = 1.0
    m: Annotated[int, Range(0, math.inf, closed="left")] = 0
    mu: Annotated[float | None, FINITE] = None
    start: Literal["shifted", "plain"] = "shifted"
    optimiser: Literal["gradient", "adam"] = "gradient"
    clamp: Annotated[float | None, Range(0, math.inf, closed="right")] = None
    cutoff: Annotated[float, Range(-math.inf, math.inf, closed="left")] = -math.inf
    backward: EnergyLike | None = None
    branch: str = "cond"

    def __post_init__(self) -> None:
        if self.backward is not None:
            object.__setattr__(self, "backward", of(self.name, self.backward))
        super().__post_init__()
        choose(self.name, "start", self.start, ("shifted", "plain"))
        choose(self.name, "optimiser", self.optimiser, ("gradient", "adam"))
        if self.m != int(self.m):
            raise ValueError(f"ugd: m must be a whole number, got {self.m}")

    @property
    def energies(self) -> tuple[str, ...]:
        own = super().energies
        return own if self.backward is None else (*own, cast(str, self.backward))

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
        forward = 0 * clean
        known = None
        if self.s:
            known = self.log_f(clean, ctx)
            forward = score_shift(self.s * ctx.pull(branch, known[1]), ctx)
        if not (self.m and self.rate):
            return forward
        shifted = self.start == "shifted" and bool(self.s)
        begin = clean + forward if shifted else clean
        if shifted or self.backward is not None:
            known = None  # of another place, or another energy
        return forward + self.search(begin, known, ctx)

    def search(self, begin: Tensor, known: tuple[Tensor, Tensor] | None, ctx: Context) -> Tensor:
        """`Delta` after the backward steps; `known` is `log f` and its gradient at `begin`."""
        moved = 0 * begin
        adam = Adam()
        for _ in range(self.m):
            value, gradient = known or ascent(self.name, self.energies[-1], begin + moved, ctx)
            known = None
            step = adam(gradient) if self.optimiser == "adam" else gradient
            target = begin + moved + self.rate * step
            if self.clamp is not None:
                target = target.clamp(-self.clamp, self.clamp)
            on = per_sample(-value > self.cutoff, begin).bool()
            moved = torch.where(on, target - begin, moved)
            if not bool(on.any()):
                break
        return moved
