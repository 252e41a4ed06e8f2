"""Feynman-Kac correctors."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fairlead.guidance.context import Weight
from fairlead.parameters import Range
from fairlead.samplers.base import Model, Sampler, register
from fairlead.samplers.particles import resampled, square
from fairlead.schedules import Level


@register("feynman_kac", ids=("XC9",))
@dataclass(frozen=True)
class FeynmanKac(Sampler):
    r"""Weights the samples of the reverse SDE so that they represent the guided density itself.

    For a guide ``s = sum_b c_b s_b`` with coefficients that add up to 1, in ``y = x / alpha`` and
    ``u = sigma^2 / alpha^2``, an Euler step and the log weight of each sample:

    .. math::
        y &\gets y + \Delta u \, s + \sqrt{\Delta u} \, n, \\
        \log W &\gets \log W + \tfrac{1}{2} \Delta u \,
            \Bigl( \lVert s \rVert^2 - \sum_b c_b \lVert s_b \rVert^2 \Bigr) .

    For CFG the bracket is ``w (w - 1) ||s_c - s_u||^2``, and the weighted samples represent
    ``p(x)^(1-w) p(x|c)^w``, which the SDE alone does not.

    * Order 1, one evaluation a step, nothing beside it. The last step adds no noise.
    * Samples under equal conditions are one group of particles; more of them make the weights
      better. ``fl.sample(...).weights`` holds what is left after the last step. Log weights grow
      with the size of a sample: images need many particles or a short window.
    * Only for guides without rules, started from the prior, which the tilt does not move.
    * At ``w = 0`` and ``w = 1`` all weights are equal.

    Args:
        threshold: Effective share of a group below which it is drawn anew (systematically), in
            [0, 1]; 0 never.
        low: Share of the steps before which nothing is drawn anew.
        high: Share of the steps from which on nothing is drawn anew.

    Raises:
        ValueError: A parameter is out of range; the guide is not affine in its branches.

    Source:
        Skreta et al. (2025), arXiv:2503.02819; rederived for any affine guide and schedule.
    """

    solver: ClassVar[bool] = False

    threshold: Annotated[float, Range(0, 1)] = 0.5
    low: Annotated[float, Range(0, 1)] = 0.0
    high: Annotated[float, Range(0, 1)] = 1.0

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        p = model(x, s)
        if t.sigma == 0:
            return t.alpha * p.denoise
        zeros = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        log_weights = model.carried.get("log_weights", zeros)
        if s.alpha == 0:  # pure noise tells the branches nothing, and no ratio is finite
            return t.alpha * p.denoise + t.sigma * model.noise(x)
        u = (s.sigma / s.alpha) ** 2
        du = u - (t.sigma / t.alpha) ** 2
        y = x / s.alpha
        total, spread = _scores(model, y, u)
        log_weights = log_weights + du / 2 * spread
        moved = t.alpha * (y + du * total + math.sqrt(du) * model.noise(x))
        model.carried["log_weights"] = log_weights
        if self.low <= model.step / model.steps < self.high:
            index, drawn = resampled(model, log_weights, self.threshold)
            if drawn.any():
                model.take(index)
                kept = model.carried["log_weights"]
                model.carried["log_weights"] = kept.where(~drawn, 0.0)
                moved = moved[index]
        return moved


def _scores(model: Model, y: Tensor, u: float) -> tuple[Tensor, Tensor]:
    """The guided score, and `||s||^2 - sum_b c_b ||s_b||^2` of each sample."""
    total = torch.zeros_like(y)
    squares = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for weight, x0 in model.parts:
        score = (x0 - y) / u
        total = total + weight * score
        squares = squares + _per_sample(weight) * square(score)
    return total, square(total) - squares


def _per_sample(weight: Weight) -> Weight:
    return weight.flatten() if isinstance(weight, Tensor) else weight
