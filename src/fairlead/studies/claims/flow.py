"""Claims of guidance on velocities."""

from typing import Any

import torch

from fairlead.prediction import PredictionType, from_x0, to_x0
from fairlead.schedules import EDM, RectifiedFlow
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, below, difference

VELOCITY: PredictionType = "flow_prediction"
SCALES = (0.0, 1.0, 2.0, 4.0)


@claim(
    "cfg-flow",
    ids=("S031",),
    claim="CFG on velocities is CFG on scores for every Gaussian path, and guides flows as it "
    "guides diffusion.",
    setting="2-D mixture of five components in two classes, exact predictions; one evaluation on "
    "straight paths at t = 0.1, 0.5, 0.9; 200 Euler steps of w = 0, 1, 2, 4 on straight paths "
    "against 200 Euler steps of diffusion, 4000 samples",
    expected="velocity and clean estimate guided at w agree to 1e-12; at each w, p(c|x) of both "
    "paths within 0.01; p(c|x) rises and the spread falls with w",
)
def mixture() -> Finding:
    """The agreement, and both orders clear of sampling error."""
    p, flow = exact.overlapping(), RectifiedFlow()
    model = p.denoiser(flow)
    worst = 0.0
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        level = flow.level(t)
        where = (x, level.alpha, level.sigma, VELOCITY)
        c, u = (model(x, t, {"label": torch.full((100,), k)}) for k in (0, -1))
        uc, uu = from_x0(c, *where), from_x0(u, *where)
        for w in SCALES:
            velocity = to_x0(uu + w * (uc - uu), *where)
            worst = max(worst, (velocity - (u + w * (c - u))).abs().max().item())
    runs = {
        path: [exact.sample(p, schedule, f"cfg({w})", 200, sampler="euler").x for w in SCALES]
        for path, schedule in (("flow", flow), ("diffusion", EDM()))
    }
    right = {k: [exact.posterior(p, x) for x in xs] for k, xs in runs.items()}
    wide = {k: [exact.spread(x) for x in xs] for k, xs in runs.items()}
    checks: dict[str, Check] = {"velocities agree": worst < 1e-12}
    for i, w in enumerate(SCALES):
        gap = abs(right["flow"][i].value - right["diffusion"][i].value)
        checks[f"both paths, w = {w:g}"] = gap < 0.01
        if i:
            checks[f"p(c|x) rises to w = {w:g}"] = above(
                difference(right["flow"][i], right["flow"][i - 1])
            )
            checks[f"spread falls to w = {w:g}"] = below(
                difference(wide["flow"][i], wide["flow"][i - 1])
            )
    measured: dict[str, Any] = {"largest gap": worst, "p(c|x)": right, "trace": wide}
    return Finding(measured, checks, nfe=400)
