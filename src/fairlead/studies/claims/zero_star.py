"""Claims of CFG-Zero*."""

from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.exact import GaussianMixture
from fairlead.exact.distribution import ExactDenoiser
from fairlead.schedules import Level, RectifiedFlow
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees, equals

# p(c|x) and trace of the covariance, with the null velocity times 1 and 1.15
PUBLISHED = {
    "cfg(3)": ((0.988, 1.138), (0.985, 1.169)),
    "cfg(3) | zero_star(0)": ((0.968, 0.977), (0.968, 0.977)),
}


class WrongNull(ExactDenoiser):
    """An exact denoiser whose null velocity is too long by a factor."""

    def __init__(self, mixture: GaussianMixture, factor: float) -> None:
        super().__init__(mixture, RectifiedFlow())
        self.factor = factor

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """`x - t u` with the velocity `u` times the factor where the label is null."""
        clean = super().predict(x, level, condition)
        null = (condition["label"] < 0).reshape(-1, 1)
        # on straight paths u = (x - D)/t
        return torch.where(null, x - self.factor * (x - clean), clean)


@claim(
    "zero_star",
    ids=("XC2",),
    claim="Fitting the null velocity to the conditional one makes guidance immune to errors in "
    "its scale.",
    setting="2-D mixture of five components in two classes, straight paths, 100 Euler steps, w = "
    "3, 4000 samples of class 0, exact velocities with the null one times 1 and 1.15; without "
    "zero steps",
    expected="p(c|x), trace of the covariance: CFG 0.988, 1.138 and 0.985, 1.169; CFG-Zero* 0.968, "
    "0.977 twice, the same samples to 1e-9",
)
def mixture() -> Finding:
    """Each number agrees; the factor moves the samples of CFG and leaves those of CFG-Zero*."""
    p = exact.overlapping()
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for guide, published in PUBLISHED.items():
        runs = []
        for factor, (right, wide) in zip((1.0, 1.15), published, strict=True):
            model = WrongNull(p, factor)
            out = exact.sample(p, model.schedule, guide, 100, denoiser=model, sampler="euler").x
            found = {"p(c|x)": exact.posterior(p, out), "trace": exact.spread(out)}
            measured[f"{guide}, factor {factor:g}"] = found
            checks[f"{guide}: p(c|x), factor {factor:g}"] = agrees(found["p(c|x)"], right, 0.0005)
            checks[f"{guide}: trace, factor {factor:g}"] = agrees(found["trace"], wide, 0.0005)
            runs.append(out)
        moved = (runs[1] - runs[0]).abs().max().item()
        measured[f"{guide}, largest move"] = moved
        if guide == "cfg(3)":
            checks["the factor moves CFG"] = moved > 0.01
        else:
            checks["the factor leaves CFG-Zero*"] = equals(moved, 0.0, 1e-9)
    return Finding(measured, checks, nfe=200)
