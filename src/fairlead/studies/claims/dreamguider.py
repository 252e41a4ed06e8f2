"""Claims of Dreamguider."""

from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.energy import Function
from fairlead.exact import GaussianMixture
from fairlead.schedules import DiscreteVP
from fairlead.studies.claims._harness import Finding, claim

PUBLISHED = {0: (5.39, 0.50), 1: (5.83, 0.89), 2: (4.45, 0.95)}


def setting(seed: int) -> tuple[GaussianMixture, Tensor, Tensor]:
    """Mixture, operator and measurements of one draw."""
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(4, 16, generator=generator, dtype=torch.float64)
    operator = torch.randn(6, 16, generator=generator, dtype=torch.float64) / 4
    p = GaussianMixture(means, 0.25)
    truth = p.sample(64, generator=generator)
    return p, operator, truth @ operator.T


@claim(
    "dreamguider",
    ids=("S214",),
    claim="Step sizes from distances travelled over accumulated gradients steer towards a "
    "measurement without any hand-set scale and without a backward through the network.",
    setting="16-D mixture of 4 Gaussians, std 0.5, 6 noise-free linear measurements, cost |A D - "
    "y|, T = 1000, beta 1e-4 to 0.02, DDPM, 64 samples, seeds 0, 1, 2 of means, operator and "
    "noise; the cost times 1 and 10",
    expected="the mean residual falls to less than a third for each seed (5.39, 5.83, 4.45 to "
    "0.50, 0.89, 0.95 in another draw); the same samples to 1e-9 for the cost times 10",
    seed=[0, 1, 2],
)
def residuals() -> Finding:
    """Residual with and without guidance, and its invariance to the scale of the cost."""
    measured, checks = {}, {}
    for seed in PUBLISHED:
        p, operator, y = setting(seed)

        def cost(z: Tensor, operator: Tensor = operator, y: Tensor = y) -> Tensor:
            size: Tensor = torch.linalg.vector_norm(z @ operator.T - y, dim=1)
            return size

        d = p.denoiser(DiscreteVP.linear())
        guides: dict[str, Any] = {
            "unguided": "none",
            "guided": fl.Dreamguider(Function(cost, name="cost")),
        }
        if seed == 0:
            guides["cost times 10"] = fl.Dreamguider(10 * Function(cost, name="cost"))
        out = {}
        for name, guide in guides.items():
            options: dict[str, Any] = {"sampler": "ddpm", "steps": 1000, "n": 64, "seed": seed}
            out[name] = fl.sample(d, guide=guide, dtype=torch.float64, record=False, **options).x
        residual = {k: cost(x).mean().item() for k, x in out.items()}
        measured[f"seed {seed}"] = residual
        checks[f"seed {seed}"] = residual["guided"] < residual["unguided"] / 3
        if seed == 0:
            apart = (out["guided"] - out["cost times 10"]).abs().max().item()
            measured["largest difference"] = {"cost times 10": apart}
            checks["scale invariance"] = apart < 1e-9
    return Finding(measured, checks, nfe=1000)
