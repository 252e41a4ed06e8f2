"""Claims of feature reuse."""

from typing import Any

import torch

import fairlead as fl
from fairlead.metrics import mean_interval
from fairlead.sampling import Result
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, below


def draw(guide: str) -> Result:
    """Ten digits of each class in 50 steps."""
    label = {"label": torch.arange(100) % 10}
    return fl.sample(fl.load("digits"), label, guide=guide, sampler="ddim", steps=50, record=False)


@claim(
    "reuse",
    ids=("S019",),
    claim="Extrapolating attention outputs from the last two computed ones stays closer to the "
    "full computation than taking the last one again.",
    setting="digits, 100 samples, 50 DDIM steps, w = 3, every second step from 0.3 of the run on "
    "reuses all self-attention layers, mean square pixel difference to the full computation from "
    "the same noise; g = 0.5 (as in Latte) and linear growth to 1.035 (as in Open-Sora) against 0",
    expected="both closer than g = 0, at 95 %",
    models=("digits",),
)
def digits() -> Finding:
    """By paired differences over samples."""
    whole = draw("cfg(3.0)").x
    guides = {
        "g = 0": "cfg(3.0) | reuse(g=0.0)",
        "g = 0.5": "cfg(3.0) | reuse(g=0.5)",
        "linear": "cfg(3.0) | reuse(g=1.035, growth='linear')",
    }
    apart = {k: (draw(g).x - whole).square().flatten(1).mean(1) for k, g in guides.items()}
    measured: dict[str, Any] = {k: a.mean().item() for k, a in apart.items()}
    checks: dict[str, Check] = {}
    for kind in ("g = 0.5", "linear"):
        change = mean_interval(apart[kind] - apart["g = 0"])
        measured[f"change, {kind}"] = change
        checks[f"{kind} closer than g = 0"] = below(change)
    return Finding(measured, checks, 100.0)
