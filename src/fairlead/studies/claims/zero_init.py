"""Claim of steps that stand still."""

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.exact import GaussianMixture
from fairlead.exact.distribution import ExactDenoiser
from fairlead.metrics import Estimate, mean_interval
from fairlead.schedules import Level, RectifiedFlow
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above

ERROR = 4.0
"""Length of the error of the first velocity; the velocity itself is about 1.8 long."""


class WrongStart(ExactDenoiser):
    """An exact denoiser whose velocity is off where there is noise alone."""

    def __init__(self, mixture: GaussianMixture, error: float) -> None:
        super().__init__(mixture, RectifiedFlow())
        self.error = error

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """`x - t (u + e)`, with the error `e` along the first axis at `t = 1`."""
        clean = super().predict(x, level, condition)
        if level.t < 1:
            return clean
        return clean - level.t * self.error * torch.eye(x.shape[1], dtype=x.dtype)[0]


@claim(
    "zero_init",
    ids=("XC2",),
    claim="Standing still in the first step is better than a velocity that is learned badly there, "
    "and no better than a right one.",
    setting="2-D mixture of five components, straight paths, 20 Euler steps without guidance, 4000 "
    f"samples of class 0; exact velocities, and with an error of length {ERROR:g} in the first; "
    "quality is log p(x|c)",
    expected="with the error log p rises by standing still; without it does not",
)
def first_step() -> Finding:
    """Differences of pairs that share their noise, clear of zero."""
    p = exact.overlapping()
    measured: dict[str, Estimate] = {}
    checks: dict[str, Check] = {}
    for error, name in ((ERROR, "wrong"), (0.0, "right")):
        model = WrongStart(p, error)
        found = []
        for guide in ("none", "none | zero_init(1)"):
            x = exact.sample(p, model.schedule, guide, 20, denoiser=model, sampler="euler").x
            found.append(p.log_density(x, None, torch.zeros(len(x), dtype=torch.long)))
            measured[f"log p, {name} start, {guide}"] = mean_interval(found[-1])
        gain = above(mean_interval(found[1] - found[0]))
        checks[f"{name} start"] = gain if error else (None if gain is None else not gain)
    return Finding(measured, checks, nfe=20)
