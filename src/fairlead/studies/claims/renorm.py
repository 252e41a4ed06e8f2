"""Claims of norm-matched guidance."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.algebra import norm
from fairlead.prediction import from_x0
from fairlead.schedules import RectifiedFlow
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._pixels import Pixels, burnt, correlation, waves
from fairlead.studies.claims._verdict import above, below, difference, equals

GUIDES = {"cond": "none", "CFG": "cfg(8)", "renorm": "cfg(8) | renorm()"}


def lengths(model: Pixels, t: float) -> dict[str, Tensor]:
    """Lengths of the guided velocities of 500 noised samples of the class, by guide."""
    level = model.schedule.level(t)
    generator = torch.Generator().manual_seed(0)
    z, n = torch.randn(2, 500, 1, 8, 8, dtype=torch.float64, generator=generator)
    x = level.alpha * (waves() + 0.15**0.5 * z) + level.sigma * n
    label = torch.zeros(500, dtype=torch.long)
    branches = {
        "cond": model(x, level, {"label": label}),
        "null": model(x, level, {"label": label - 1}),
    }
    guided = {k: fl.combine(g, branches, x=x, t=level) for k, g in GUIDES.items()}
    return {
        name: norm(from_x0(clean, x, level.alpha, level.sigma, "flow_prediction"))
        for name, clean in guided.items()
    }


@claim(
    "renorm",
    ids=("XC11",),
    claim="Capping the length of the guided velocity at the conditional one's keeps high scales "
    "from burning.",
    setting="8x8 Gaussian images, exact velocities, straight paths; lengths of 500 predictions at "
    "t = 0.9, 0.5, 0.1; 64 Euler steps, w = 8, 500 samples",
    expected="lengths relative to the conditional one at most 1, and 1 to 1e-9 where CFG's is "
    "more; fewer pixels beyond 0.99 than under CFG; correlation with the class mean not below 0.9",
)
def pixels() -> Finding:
    """Lengths to rounding; the saturated share below CFG's; the class still there."""
    model = Pixels(waves(), RectifiedFlow())
    measured, checks = {}, {}
    for t in (0.9, 0.5, 0.1):
        long = lengths(model, t)
        plain, capped = (long[name] / long["cond"] for name in ("CFG", "renorm"))
        measured[f"relative length, t = {t:g}"] = {
            "CFG": plain.mean().item(),
            "renorm": capped.mean().item(),
        }
        error = (capped - plain.clamp(max=1)).abs().max().item()
        checks[f"lengths at t = {t:g}"] = equals(error, 0.0, 1e-9)
    runs = {name: model.draw(guide, 64, 500, "euler").x for name, guide in GUIDES.items()}
    share = {name: burnt(x) for name, x in runs.items()}
    like = {name: correlation(x, waves()) for name, x in runs.items()}
    checks["fewer saturated pixels"] = below(difference(share["renorm"], share["CFG"]))
    checks["still of the class"] = above(like["renorm"], 0.9)
    return Finding({**measured, "saturated": share, "correlation": like}, checks, nfe=128)
