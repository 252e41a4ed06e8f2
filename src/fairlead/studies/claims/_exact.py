"""Testbeds without network error, and what is measured on their samples."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.condition import Condition
from fairlead.exact import GaussianMixture, GaussianPair
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.metrics import Estimate, bootstrap, mean_interval
from fairlead.samplers.base import get as get_sampler
from fairlead.sampling import Result
from fairlead.schedules import Level, NoiseSchedule, Spacing

N = 4000
"""Samples of an experiment, unless it says otherwise."""


@dataclass(frozen=True)
class OnLevels(fl.schedules.VP):
    """A schedule that walks given levels, whatever the number of steps asked for."""

    levels: tuple[Level, ...] = ()

    def grid(self, steps: int, spacing: Spacing | None = None, **options: Any) -> list[Level]:
        """The levels."""
        return list(self.levels)


def three_classes() -> GaussianMixture:
    """Three overlapping classes, one component each."""
    return GaussianMixture([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]], 0.5, labels=[0, 1, 2])


def overlapping() -> GaussianMixture:
    """Class 0 has a minority component of share 0.3; all components overlap."""
    means = [[-0.6, -1.0], [-0.6, 1.0], [0.6, -1.0], [0.6, 1.0], [1.0, 0.0]]
    return GaussianMixture(means, 0.3, [1.4, 0.6, 1.0, 1.0, 1.0], [0, 0, 1, 1, 1])


def separate() -> GaussianMixture:
    """Class 0 has a minority component of share 0.3; the components are well apart."""
    means = [[-1.5, -1.0], [-1.5, 1.0], [0.5, -1.0], [0.5, 1.0], [1.5, 0.0]]
    return GaussianMixture(means, 0.15, [1.4, 0.6, 1.0, 1.0, 1.0], [0, 0, 1, 1, 1])


def sample(
    mixture: GaussianMixture,
    schedule: NoiseSchedule,
    guide: Guide | str,
    steps: int,
    *,
    label: int = 0,
    n: int = N,
    seed: int = 0,
    denoiser: fl.Denoiser | None = None,
    **options: Any,
) -> Result:
    """Samples of a class by DDIM, in float64; by default under the exact denoiser."""
    return fl.sample(
        denoiser or mixture.denoiser(schedule),
        {"label": torch.full((n,), label)},
        guide=guide,
        steps=steps,
        seed=seed,
        **{"sampler": "ddim", "dtype": torch.float64, "record": False, **options},
    )


def posterior(mixture: GaussianMixture, x: Tensor, label: int = 0) -> Estimate:
    """Mean probability of a class."""
    return mean_interval(mixture.log_posterior(x)[:, label].exp())


def share(mixture: GaussianMixture, x: Tensor, component: int) -> Estimate:
    """Share of samples for which a component is the likeliest of all, of any class."""
    best = mixture.responsibilities(x).argmax(1)
    return mean_interval((best == component).double())


def spread(x: Tensor) -> Estimate:
    """Trace of the covariance."""
    return bootstrap(lambda y: y.var(0).sum(), x, resamples=200)


class _Linear(GuidedModel):
    """A guided model whose row 0 gets no noise and whose row `j` gets the unit of draw `j`."""

    def noise(self, x: Tensor) -> Tensor:
        self._drawn += 1
        unit = torch.zeros_like(x)
        unit[self._drawn] = 1
        return unit


def end_variance(
    pair: GaussianPair, sampler: str, guide: str, levels: list[Level], start: float, draws: int = 1
) -> float:
    """Variance after a sampler, exactly: nothing is drawn.

    On Gaussians of mean zero every step is linear, `x' = f x + sum_j g_j n_j`. The sampler itself
    is applied to `x = 1` without noise and to `x = 0` with one unit of each of its `draws`.
    """
    denoiser = pair.denoiser(fl.schedules.VP())
    condition = {"cond": Condition({"label": torch.zeros(draws + 1, dtype=torch.long)})}
    evaluator = Evaluator(denoiser, condition)
    model = _Linear(fl.guide(guide), evaluator, Run(steps=len(levels) - 1, record=False))
    rule = get_sampler(sampler)
    variance = start
    for s, t in pairwise(levels):
        x = torch.zeros(draws + 1, 1, dtype=torch.float64)
        x[0] = 1
        model.begin(s)
        with torch.no_grad():
            response = rule.step(model, x, s, t).flatten()
        variance = response[0].item() ** 2 * variance + (response[1:] ** 2).sum().item()
    return variance
