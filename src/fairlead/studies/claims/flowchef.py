"""Claims of FlowChef."""

from typing import Any

import torch

import fairlead as fl
from fairlead.energy import Linear
from fairlead.exact import GaussianMixture
from fairlead.schedules import RectifiedFlow
from fairlead.studies.claims import _inverse as inverse
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees, below, difference

TIMES = (0.8, 0.6, 0.4, 0.2)
COSINES = {
    "std 0.6": (0.977, 0.947, 0.985, 0.999),
    "std 0.1": (0.960, 0.854, 0.967, 1.000),
    "one Gaussian, correlation 0.8": (0.988, 0.990, 0.994, 0.999),
}
DISTANCES = {0.02: 0.139, 0.05: 0.204, 0.1: 0.219}


def cosine(p: GaussianMixture, t: float) -> float:
    """Mean cosine between the gradient of a quadratic cost at D and its gradient in x."""
    generator = torch.Generator().manual_seed(0)
    level = RectifiedFlow().level(t)
    clean = p.sample(4000, generator=generator)
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    x = (level.alpha * clean + level.sigma * noise).requires_grad_()
    target = torch.ones(2, dtype=torch.float64)
    estimate = p.x0(x, level)
    (full,) = torch.autograd.grad(((estimate - target) ** 2).sum() / 2, x)
    return torch.cosine_similarity(full, (estimate - target).detach()).mean().item()


@claim(
    "flowchef",
    ids=("S105",),
    claim="Along nearly straight flows the gradient of a cost at the clean estimate points where "
    "the full gradient points, so steering needs no backward through the network.",
    setting="mean cosine of the two for |D - (1, 1)|^2 / 2 on three mixtures; then the mixture of "
    "means (2, 0), (-1, 1.5), (0, -2), std 0.6, cost (x_1 + 0.7 x_2 - 1)^2 / 2, rectified flow, 60 "
    "Euler steps, 2400 samples (800 at first, which left one interval undecided), s = 0.02, 0.05, "
    "0.1; energy distance to the posterior of noise 0.5",
    expected="the cosine tends to 1 as t falls to 0.2, is least for the mixture of std 0.1, and is "
    "1 for an isotropic Gaussian; distance unguided 0.360, guided 0.139, 0.204, 0.219",
)
def straight() -> Finding:
    """Cosines by time and distances to the posterior by step size."""
    means = inverse.mixture().means
    tilted = torch.tensor([[[1.0, 0.8], [0.8, 1.0]]], dtype=torch.float64)
    cases = {
        "std 0.6": GaussianMixture(means, 0.36),
        "std 0.1": GaussianMixture(means, 0.01),
        "one Gaussian, correlation 0.8": GaussianMixture([[0.0, 0.0]], tilted),
        "isotropic": GaussianMixture([[0.0, 0.0]], 1.0),
    }
    found = {name: [cosine(p, t) for t in TIMES] for name, p in cases.items()}
    checks = {f"{k} tends to 1": v[-1] > 0.99 and v[-1] > v[1] for k, v in found.items()}
    checks["isotropic tends to 1"] = min(found["isotropic"]) > 1 - 1e-9
    checks["least for narrow modes"] = all(
        min(found["std 0.1"]) < min(v) for k, v in found.items() if k != "std 0.1"
    )
    e = Linear(inverse.A, inverse.Y)
    options: dict[str, Any] = {
        "schedule": RectifiedFlow(),
        "sampler": "euler",
        "steps": 60,
        "n": 2400,
    }
    plain = inverse.distance(inverse.sample("none", **options))
    distances = {"unguided": plain}
    verdicts: dict[str, bool | None] = {**checks, "unguided": agrees(plain, 0.360, 0.0005)}
    for s, number in DISTANCES.items():
        led = inverse.distance(inverse.sample(fl.FlowChef(e, s), **options))
        distances[f"s = {s:g}"] = led
        verdicts[f"s = {s:g}"] = agrees(led, number, 0.0005)
        verdicts[f"s = {s:g} is closer than unguided"] = below(difference(led, plain))
    return Finding({"cosine": found, "distance": distances}, verdicts, nfe=60)
