"""Condition mixture: a coin at high noise, fitted weights at low noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Difference, Range, Term, register
from fairlead.guidance.branch import COND, Branch
from fairlead.guidance.states import absent, branch


@register("condition_mixture", ids=("S099",), nfe=3)
@dataclass(frozen=True)
class ConditionMixture(Term):
    r"""Mixes the predictions under both of two conditions, each alone, and none.

    .. math:: D = a_{12} D(c_1, c_2) + a_1 D(c_1) + a_2 D(c_2) + a_0 D(\emptyset),
              \qquad a_{12} + a_1 + a_2 + a_0 = 1

    With ``tau`` from 0 (data) to 1 (noise), the share of the schedule's time: above ``switch`` a
    coin a step, common to the batch, chooses CFG on the first condition with or without the second,

    .. math:: D(c_2) + w \, [D(c_1, c_2) - D(c_2)] \text{ or }
              D(\emptyset) + w \, [D(c_1) - D(\emptyset)], \qquad w = 1 + k \tau

    and below it the weights are constants that are fitted to a model, not derived.

    * Cost: 2 NFE above ``switch``, up to 4 below.
    * Neutral: none. ``coarse = 0`` is a coin between both conditions and the first alone;
      ``fine = [1, 0, 0]`` is the conditional model below ``switch``.
    * Defaults by family: HumanML3D ``coarse`` 6.5, ``fine`` 0.52351, -0.28419, 2.39872; KIT 4.0
      and 0.78123, 0.39284, -0.12475.

    Args:
        conditions: Two names, text and retrieval in the paper.
        coarse: ``k``, at least 0.
        fine: ``a_12``, ``a_1``, ``a_2``; ``a_0`` is what is left to 1.
        switch: ``tau`` above which the coin decides.

    Raises:
        ValueError: A parameter is out of range, or there are not two conditions and three
            weights.

    Example:
        >>> import fairlead as fl
        >>> str(fl.ConditionMixture(["label", "style"], 4.0, [0.78, 0.39, -0.12]))
        "condition_mixture(['label', 'style'], 4.0, [0.78, 0.39, -0.12])"

    Source:
        Zhang, Guo, Pan, Cai, Hong, Li, Yang, Liu (2023), arXiv:2304.01116.
    """

    conditions: Sequence[str]
    coarse: Annotated[float, Range(0, float("inf"), closed="left")]
    fine: Annotated[tuple[float, ...], FINITE]
    switch: Annotated[float, Range(0, 1)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(absent("condition_mixture", self.conditions)) != 2:
            raise ValueError(
                f"condition_mixture: conditions must be two, got {list(self.conditions)!r}"
            )
        if not isinstance(self.fine, tuple) or len(self.fine) != 3:
            raise ValueError(f"condition_mixture: fine must be three weights, got {self.fine!r}")

    @cached_property
    def states(self) -> tuple[Branch, Branch, Branch]:
        """The branches under the first alone, the second alone, and none."""
        known = absent("condition_mixture", self.conditions)
        one, other = (branch("condition_mixture", s, known) for s in known)
        return one, other, branch("condition_mixture", "none", known)

    def _away(self, first: float, second: float, none: float) -> tuple[Difference, ...]:
        """The mixture as differences from the conditional prediction."""
        weights = zip((first, second, none), self.states, strict=True)
        return tuple((-a, COND, state) for a, state in weights if a != 0)

    @property
    def differences(self) -> tuple[Difference, ...]:
        both, first, second = self.fine
        return self._away(first, second, 1 - both - first - second)

    def differences_at(self, ctx: Context) -> tuple[Difference, ...]:
        t = ctx.level.t
        if isinstance(t, Tensor):
            raise ValueError("condition_mixture: all samples must be at one time")
        top = 1.0 if ctx.denoiser is None else ctx.denoiser.schedule.t_max
        if t / top <= self.switch:
            return self.differences
        w = 1 + self.coarse * t / top
        if ctx.run.uniform(None, "condition_mixture")[0] < 0.5:
            return self._away(0.0, 1 - w, 0.0)
        return self._away(w, 0.0, 1 - w)

    @property
    def strength(self) -> float:
        return 1.0

    def strength_at(self, ctx: Context) -> float:
        return self.strength

    @property
    def negative(self) -> Branch:
        return self.states[2]
