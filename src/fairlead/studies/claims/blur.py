"""Claims of blur guidance."""

import math
from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.condition import Condition
from fairlead.exact import GaussianMixture
from fairlead.metrics import Estimate, bootstrap
from fairlead.schedules import Level
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees

NORMAL = {0.0: 0.98, 0.25: 0.87, 0.5: 0.77, 1.0: 0.60, 2.0: 0.36}
MODES = {0.0: 0.29, 0.1: 0.17, 0.25: 0.06, 0.5: 0.01}


class TwoPixels(fl.Denoiser):
    """An exact mixture of the plane as images of two pixels.

    Their mean is the first coordinate over `sqrt(2)`, half their difference the second: a blur
    that leaves only the mean keeps the first coordinate and drops the second.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        schedule = fl.schedules.DiscreteVP.linear()
        super().__init__(lambda x, t: x, schedule, "sample", shape=(1, 1, 2))
        self.exact = mixture.denoiser(schedule)

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        label = Condition({"label": torch.zeros(len(x), dtype=torch.long)})
        return turned(self.exact.predict(turned(x.flatten(1)), level, label)).reshape(x.shape)


def turned(x: Tensor) -> Tensor:
    """The reflection between pixels and coordinates, its own inverse."""
    a, b = x.unbind(1)
    return torch.stack([a + b, a - b], 1) / math.sqrt(2)


def deviation(x: Tensor) -> Estimate:
    """Standard deviation, with an interval."""
    return bootstrap(lambda y: y.std(), x, resamples=200)


@claim(
    "blur",
    ids=("S027",),
    claim="Blur guidance contracts what the blur removes towards its modes and leaves the rest "
    "alone.",
    setting="plane as images of two pixels, blur to their mean, exact denoiser, linear betas, 4000 "
    "samples: a standard normal in 200 DDIM steps; four modes at (+-2, +-2) of deviation 0.3 in "
    "100",
    expected="normal: deviation of the blurred coordinate 0.98, 0.87, 0.77, 0.60, 0.36 at s = 0, "
    "0.25, 0.5, 1, 2, of the kept one 0.97; modes: deviation within a mode of the blurred "
    "coordinate 0.29, 0.17, 0.06, 0.01 at s = 0, 0.1, 0.25, 0.5, its mean distance from 0 stays 2",
    seed=1,
)
def plane() -> Finding:
    """Every number agrees."""
    checks: dict[str, Check] = {}
    measured: dict[str, Any] = {"normal": {}, "modes": {}}
    normal = TwoPixels(GaussianMixture([[0.0, 0.0]], 1.0, labels=[0]))
    corners = [[a, b] for a in (-2.0, 2.0) for b in (-2.0, 2.0)]
    modes = TwoPixels(GaussianMixture(corners, 0.09, labels=[0] * 4))
    for s, published in NORMAL.items():
        kept, blurred = (deviation(v) for v in draw(normal, s, 200).unbind(1))
        measured["normal"][f"s = {s:g}"] = {"blurred": blurred, "kept": kept}
        checks[f"normal, s = {s:g}"] = agrees(blurred, published, 0.005)
        checks[f"normal, kept, s = {s:g}"] = agrees(kept, 0.97, 0.005)
    for s, published in MODES.items():
        distance = draw(modes, s, 100)[:, 1].abs()
        within, centre = deviation(distance), distance.mean().item()
        measured["modes"][f"s = {s:g}"] = {"within": within, "centre": centre}
        checks[f"modes, s = {s:g}"] = agrees(within, published, 0.005)
        checks[f"centre, s = {s:g}"] = abs(centre - 2) < 0.05
    return Finding(measured, checks, nfe=400)


def draw(denoiser: TwoPixels, s: float, steps: int) -> Tensor:
    """Samples in the plane."""
    out = fl.sample(
        denoiser,
        guide=fl.BlurGuidance(s, width=math.inf),
        sampler="ddim",
        steps=steps,
        n=4000,
        seed=1,
        dtype=torch.float64,
        record=False,
    )
    return turned(out.x.flatten(1))
