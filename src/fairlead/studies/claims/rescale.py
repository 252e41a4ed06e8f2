"""Claims of guidance rescale."""

import math

import torch
from torch import Tensor

import fairlead as fl
from fairlead.condition import Condition
from fairlead.metrics import Estimate, mean_interval
from fairlead.schedules import EDM, Level
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, agrees, below, difference

N = 1000
GUIDES = {
    "cond": "none",
    "cfg": "cfg(7.5)",
    "x0": "cfg(7.5) | rescale(1.0)",
    "v": "cfg(7.5) | rescale(1.0, space='v_prediction')",
    "eps": "cfg(7.5) | rescale(1.0, space='epsilon')",
}
PUBLISHED = {
    20.0: (0.30, 2.23, 0.30, 0.30, 2.20),
    1.0: (0.33, 1.87, 0.33, 0.58, 1.00),
    0.1: (0.474, 0.463, 0.474, 0.482, 0.485),
}


def pattern() -> Tensor:
    """`0.6 sin(2 pi X) cos(pi Y)` on 8x8 pixels, `X` and `Y` from 0 to 1."""
    line = torch.linspace(0, 1, 8, dtype=torch.float64)
    return (0.6 * torch.outer((math.pi * line).cos(), (2 * math.pi * line).sin()))[None, None]


class Images(fl.Denoiser):
    """`N(0, 0.3 I)` without label and `N(pattern, 0.15 I)` with label 0, exactly."""

    def __init__(self) -> None:
        super().__init__(lambda x, t: x, EDM(), "sample", null={"label": -1}, shape=(1, 8, 8))

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        own = (condition["label"] == 0).reshape(-1, 1, 1, 1)
        mean = torch.where(own, pattern(), 0.0).to(x)
        variance = torch.where(own, 0.15, 0.3).to(x)
        return mean + variance / (variance + level.sigma**2) * (x - mean)


def std(x: Tensor) -> Estimate:
    """Mean over samples of the standard deviation of the pixels, with divisor 64."""
    return mean_interval(x.flatten(1).std(1, correction=0))


@claim(
    "rescale",
    ids=("S110",),
    claim="Rescaling to the conditional prediction's standard deviation undoes the over-exposure "
    "of high scales.",
    setting="8x8 Gaussian images, exact predictions, w = 7.5; std of one prediction at phi = 1 in "
    "x0, v and eps space (divisor 64); std of final samples of 64 Euler steps at phi = 0.7; "
    "1000 samples",
    expected="std of cond, CFG, rescaled in x0, v, eps: sigma 20: 0.30, 2.23, 0.30, 0.30, 2.20; "
    "sigma 1: 0.33, 1.87, 0.33, 0.58, 1.00; sigma 0.1: 0.474, 0.463, 0.474, 0.482, 0.485; final "
    "samples: CFG 0.71, x0 0.60, v 0.72, eps 0.80; only the x0 form is promised to lower it",
)
def images() -> Finding:
    """Every number agrees; final samples have less std under the x0 form than under CFG."""
    model, generator = Images(), torch.Generator().manual_seed(0)
    measured, checks = {}, {}
    for sigma, published in PUBLISHED.items():
        z, n = (torch.randn(N, 1, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2))
        x = pattern() + math.sqrt(0.15) * z + sigma * n
        level = Level(sigma, 1.0, sigma)
        label = torch.zeros(N, dtype=torch.long)
        branches = {
            "cond": model(x, level, {"label": label}),
            "null": model(x, level, {"label": label - 1}),
        }
        found = {
            name: std(fl.combine(guide, branches, x=x, t=level)) for name, guide in GUIDES.items()
        }
        measured[f"sigma {sigma:g}"] = found
        half = 0.0005 if sigma < 1 else 0.005
        for name, p in zip(GUIDES, published, strict=True):
            checks[f"{name} at sigma {sigma:g}"] = agrees(found[name], p, half)
    final = {}
    for name, p in (("cfg", 0.71), ("x0", 0.60), ("v", 0.72), ("eps", 0.80)):
        out = fl.sample(
            model,
            {"label": torch.zeros(N, dtype=torch.long)},
            guide=GUIDES[name].replace("1.0", "0.7"),
            sampler="euler",
            steps=64,
            dtype=torch.float64,
            record=False,
        )
        final[name] = std(out.x)
        checks[f"{name}, final samples"] = agrees(final[name], p, 0.005)
    measured["final samples"] = final
    checks["x0 form lowers the std"] = below(difference(final["x0"], final["cfg"]))
    checks["eps form raises it"] = above(difference(final["eps"], final["cfg"]))
    return Finding(measured, checks, nfe=128)
