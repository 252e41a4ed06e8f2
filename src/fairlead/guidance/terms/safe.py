"""Safe latent diffusion: away from an unwanted concept, only where it is near."""

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fairlead.guidance.algebra import (
    FINITE,
    Context,
    Place,
    Predictions,
    Range,
    Scale,
    Term,
    register,
)
from fairlead.guidance.branch import NULL, Branch
from fairlead.guidance.context import Weight, magnitude


@register("safe", ids=("XM5",), nfe=2, neutral="0.0")
@dataclass(frozen=True)
class Safe(Term):
    r"""Pushes away from a concept, number by number, where the prediction comes close to it.

    In noise space, with ``s`` the concept's prediction, ``u`` null, ``c`` the conditional one:

    .. math::
        \mu &= \min(1, k \, |c - s|) \text{ where } c - s < \lambda, \text{ else } 0, \\
        \gamma &= \mu \, (s - u) + m \, \nu, \qquad \nu \gets \beta \nu + (1 - \beta) \gamma, \\
        \epsilon &= \epsilon_\mathrm{rest} - w \, \gamma

    The threshold has a sign: numbers whose noise lies far above the concept's are left alone, and
    those below are not. Added to ``cfg(w)`` with the same ``w`` it is the paper's
    ``u + w {(c - u) - gamma}``. In the first steps only the momentum ``nu`` gathers.

    * Space: epsilon.
    * Cost: 2 NFE beside the conditional one, of which ``cfg`` shares the null; one tensor shaped
      like ``x``, kept for the trajectory.
    * Neutral: ``w = 0``.
    * Defaults by family: Stable Diffusion as below; stronger: ``k`` 2000 to 5000, ``threshold``
      0.025 to 1, ``momentum`` 0.5 to 0.7, ``beta`` 0.7, ``warmup`` 7 to 0.

    Args:
        w: Weight, that of ``cfg``; one number, or one a sample.
        against: State that holds the concept, given to ``fl.sample(states=...)``.
        k: Scale of the distance.
        threshold: ``lambda``.
        momentum: ``m``.
        beta: Decay of the momentum, in [0, 1).
        warmup: Steps in which nothing is pushed.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Safe(7.5, against="negative"))
        "safe(7.5, against='negative')"

    Source:
        Schramowski, Brack, Deiseroth, Kersting (2022), arXiv:2211.05105.
    """

    affine: ClassVar[bool] = False

    w: Scale
    against: str = "safety"
    k: Annotated[float, Range(0, inf, closed="left")] = 1000.0
    threshold: Annotated[float, FINITE] = 0.01
    momentum: Annotated[float, Range(0, inf, closed="left")] = 0.3
    beta: Annotated[float, Range(0, 1, closed="left")] = 0.4
    warmup: Annotated[int, Range(0, inf, closed="left")] = 10

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.w

    @property
    def positive(self) -> Branch:
        return NULL

    @cached_property
    def negative(self) -> Branch:
        return Branch(self.against, state=self.against)

    def plan(self, ctx: Context, gains: tuple, gain: float, place: Place) -> None:  # type: ignore[type-arg]
        super().plan(ctx, gains, gain, place)
        if place in ctx.plan.terms:
            ctx.plan.look_at(ctx.plan.base)

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        planned = ctx.plan.terms.get(place, ())
        if not planned:
            return None, 0.0
        ((weight, positive, negative),) = planned
        values = predictions.values_by_branch
        ratio = -ctx.alpha / ctx.sigma  # of a difference of noise to one of clean estimates
        concept = (values[negative] - values[positive]) * ratio
        apart = (predictions.base - values[negative]) * ratio
        mu = (self.k * apart.abs()).clamp(max=1)
        mu = torch.where(apart >= self.threshold, 0.0, mu)
        ctx.place = place
        gathered = ctx.recall(0.0)
        away = mu * concept + self.momentum * gathered
        ctx.remember(self.beta * gathered + (1 - self.beta) * away)
        if ctx.run.step < self.warmup:
            away = away * 0.0  # and not zeros, so that NaN is found
        update = away / ratio * -weight
        if ctx.run.report.record:
            ctx.run.report.norm(self.label, update)
        return update, magnitude(weight)
