"""The one algorithm behind training-free guidance; its corners are methods of their own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Weight
from fairlead.guidance.energy.term import GradientTerm, ratio, signal

SHAPES = ("increase", "decrease", "constant")


@dataclass(frozen=True)
class TrainingFree(GradientTerm):
    """Variance guidance through the network and mean guidance at the clean estimate.

    On the variance-preserving path, with `A` the squared signal level and `D` frozen, the next
    sample of DDIM gets `Delta_t / sqrt(r_t) + sqrt(A_next) Delta_0` on top. As a shift of the
    `denoise` end alone that is `Delta_t / sqrt(A) + Delta_0`, for every schedule and sampler.
    """

    def variance(self, value: Tensor, ctx: Context) -> Weight:
        """`rho_t / sqrt(A)`: the factor of the gradient in `x`, given `log f` `(B,)`."""
        return 0.0

    def mean(self, ctx: Context) -> float:
        """`mu_t`: the step size at the clean estimate."""
        return 0.0

    @property
    def inner(self) -> int:
        """Number of steps at the clean estimate."""
        return 0

    def spread(self, ctx: Context) -> tuple[float, int]:
        """Standard deviation and number of the smoothing draws; 0 and any are none."""
        return 0.0, 1

    def draws(self, like: Tensor, ctx: Context) -> list[Tensor]:
        """Offsets of the clean estimate, the same in all gradients of an evaluation."""
        std, count = self.spread(ctx)
        if not std:
            return []
        key = f"{self.name} {ctx.run.stage}"
        return [std * ctx.run.normal(like, key, i) for i in range(count)]

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        clean = predictions[branch]
        draws = self.draws(clean, ctx)
        value, gradient = self.log_f(clean, ctx, draws)
        shift = torch.zeros_like(clean)
        if self.differentiates(ctx):
            factor = self.variance(value, ctx)
            # a gradient in the variance-preserving sample is sqrt(alpha^2 + sigma^2) one in x
            unit = (ctx.alpha**2 + ctx.sigma**2) ** 0.5
            shift = shift + factor * unit * ctx.pull(branch, gradient)
        return shift + self.ascend(clean, gradient, draws, ctx)

    def ascend(
        self, start: Tensor, gradient: Tensor, draws: Sequence[Tensor], ctx: Context
    ) -> Tensor:
        """`Delta_0` after the inner steps; `gradient` is that at `start`."""
        moved = torch.zeros_like(start)
        rate = self.mean(ctx)
        for i in range(self.inner):
            if i:
                gradient = self.log_f(start + moved, ctx, draws)[1]
            moved = moved + rate * gradient
        return moved


def shape_at(shape: str, ctx: Context) -> float:
    """`h_t` times the number of steps over their sum: a schedule of mean 1 over the steps.

    `increase` is `r_t`, the one-step ratio of squared signal levels, `decrease` is `1 - r_t`.
    """
    levels = ctx.run.levels
    if shape == "constant" or len(levels) < 2 or not 0 <= ctx.run.step < len(levels) - 1:
        return 1.0
    rates = [ratio(s, t) for s, t in pairwise(levels)]
    weights = rates if shape == "increase" else [1 - r for r in rates]
    total = math.fsum(weights)
    return weights[ctx.run.step] * len(weights) / total if total else 0.0


def step_factor(ctx: Context) -> float:
    """`sqrt(r_t / A)`, which is `1 / sqrt(A_next)`: finite also where the signal is 0."""
    return 1 / signal(ctx.target)


def noise_share(ctx: Context) -> float:
    """`sqrt(1 - A)`: the noise level of the variance-preserving path."""
    return math.sqrt(max(1 - signal(ctx.level) ** 2, 0.0))
