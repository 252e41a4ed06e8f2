"""Claims of tangential damping."""

import math

import torch
from torch import Tensor

from fairlead.exact import GaussianMixture
from fairlead.metrics import mean_interval
from fairlead.schedules import EDM
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees, below, difference

# mean distance from the nearest centre of the class under CFG and under the rule, by scale
PUBLISHED = {8.0: (0.113, 0.105), 3.0: (0.052, 0.049)}


def arcs() -> Tensor:
    """Two interleaved half circles of radius 1, 40 points each, `(2, 40, 2)`."""
    angle = torch.linspace(0, math.pi, 40, dtype=torch.float64)
    x, y = angle.cos(), angle.sin()
    return torch.stack([torch.stack([x, y], 1), torch.stack([1 - x, 0.5 - y], 1)])


@claim(
    "tangential",
    ids=("XC3",),
    claim="Damping the null score leaves fewer samples off the manifold of the class.",
    setting="two half circles of 40 Gaussians each, deviation 0.06, exact denoiser, sigma 20 to "
    "0.002, rho 7, 40 DDIM steps, 1200 samples of the first, w = 3 and 8; distances are those from "
    "the nearest of its 40 centres",
    expected="with exact scores the share farther than 0.2 stays that of CFG (0.1 % and 0.4 %); "
    "the mean distance falls slightly, from 0.052 to 0.049 and from 0.113 to 0.105",
)
def moons() -> Finding:
    """Each mean agrees and the rule's lies below CFG's on the same noise."""
    points = arcs()
    labels = [0] * 40 + [1] * 40
    p = GaussianMixture(points.flatten(0, 1).tolist(), 0.06**2, labels=labels)

    def distance(x: Tensor) -> Tensor:
        return torch.cdist(x, points[0]).amin(1)

    schedule = EDM(sigma_min=0.002, sigma_max=20.0)
    measured, checks = {}, {}
    for w, (before, after) in PUBLISHED.items():
        plain, damped = (
            distance(exact.sample(p, schedule, guide, 40, n=1200).x)
            for guide in (f"cfg({w})", f"cfg({w}) | tangential()")
        )
        change = mean_interval(damped - plain)
        far = [mean_interval((d > 0.2).double()) for d in (plain, damped)]
        measured[f"w = {w:g}"] = {
            "distance": [mean_interval(plain), mean_interval(damped)],
            "change": change,
            "farther than 0.2": far,
        }
        checks[f"CFG, w = {w:g}"] = agrees(mean_interval(plain), before, 0.0005)
        checks[f"damped, w = {w:g}"] = agrees(mean_interval(damped), after, 0.0005)
        checks[f"distance falls, w = {w:g}"] = below(change)
        checks[f"no more far ones, w = {w:g}"] = below(difference(far[1], far[0]), 0.01)
    return Finding(measured, checks, nfe=80)
