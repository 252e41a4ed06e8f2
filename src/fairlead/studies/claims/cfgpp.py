"""Claims of CFG++."""

from itertools import pairwise

import torch
from torch import Tensor

from fairlead.exact import GaussianMixture
from fairlead.metrics import Estimate, bootstrap
from fairlead.schedules import EDM, DiscreteVP
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees, below, difference, equals

SCHEDULE = DiscreteVP.scaled_linear()
STEPS = 50


def invert(p: GaussianMixture, x: Tensor, w: float, plus: bool) -> Tensor:
    """DDIM inversion of class 0 from data to noise, under CFG or CFG++.

    The network is evaluated at the sample of the less noisy level and the time of the next. CFG++
    swaps its ends: it denoises with the null and renoises with the guided prediction.
    """
    levels = SCHEDULE.grid(STEPS)[::-1]
    for s, t in pairwise(levels):
        free = (x - t.alpha * p.x0(x, t)) / t.sigma
        own = (x - t.alpha * p.x0(x, t, 0)) / t.sigma
        guided = free + w * (own - free)
        clean = (x - s.sigma * (free if plus else guided)) / s.alpha
        x = t.alpha * clean + t.sigma * guided
    return x


def round_trip(p: GaussianMixture, w: float, plus: bool) -> Estimate:
    """RMSE of coordinates after inversion of true samples and sampling them anew."""
    x = p.sample(exact.N, 0, torch.Generator().manual_seed(0))
    guide = f"cfgpp({w})" if plus else f"cfg({w})"
    back = exact.sample(p, SCHEDULE, guide, STEPS, x=invert(p, x, w, plus)).x
    return bootstrap(lambda d: d.square().mean().sqrt(), back - x, resamples=200)


@claim(
    "cfgpp",
    ids=("S002",),
    claim="At matched class accuracy, interpolating and renoising without guidance inverts better "
    "than CFG at its high scale.",
    setting="2-D mixture with two components in the class, exact denoiser, scaled-linear betas, 50 "
    "trailing DDIM steps, 4000 samples: lambda 0.2 against w = 2.64 and 0.6 against 8.07; weight "
    "that lambda = 0.6 stands for on 50 levels from sigma 80 to 0.002, log-uniform",
    expected="implied w 3.085; p(c|x) 0.980 of both at 0.2, 0.9993 at 0.6; trace of the covariance "
    "1.145 against 1.139, 0.884 against 0.874; round trip RMSE 0.066 against 0.072, 0.53 against "
    "0.77",
)
def mixture() -> Finding:
    """Numbers agree; the round trip of CFG++ is clearly better at both scales."""
    p = exact.overlapping()
    grid = EDM(spacing="log_snr").grid(STEPS)
    implied = 0.6 / (1 - grid[1].sigma / grid[0].sigma)
    measured: dict[str, object] = {"implied w": implied}
    checks = {"implied w": equals(implied, 3.085, 0.0005)}
    rows = (
        ("lambda 0.2", 0.2, True, 0.980, 0.0005, 1.145, 0.066),
        ("w 2.64", 2.64, False, 0.980, 0.0005, 1.139, 0.072),
        ("lambda 0.6", 0.6, True, 0.9993, 0.00005, 0.884, 0.53),
        ("w 8.07", 8.07, False, 0.9993, 0.00005, 0.874, 0.77),
    )
    trips = {}
    for name, w, plus, right, digit, trace, error in rows:
        x = exact.sample(p, SCHEDULE, f"cfgpp({w})" if plus else f"cfg({w})", STEPS).x
        trips[name] = round_trip(p, w, plus)
        found = [exact.posterior(p, x), exact.spread(x), trips[name]]
        measured[name] = found
        checks[f"p(c|x) agrees, {name}"] = agrees(found[0], right, digit)
        checks[f"trace agrees, {name}"] = agrees(found[1], trace, 0.0005)
        rounding = 0.0005 if error < 0.1 else 0.005
        checks[f"round trip agrees, {name}"] = agrees(found[2], error, rounding)
    checks["better round trip at 0.2"] = below(difference(trips["lambda 0.2"], trips["w 2.64"]))
    checks["better round trip at 0.6"] = below(difference(trips["lambda 0.6"], trips["w 8.07"]))
    return Finding(measured, checks, nfe=100)


@claim(
    "cfgpp-steps",
    ids=("S002",),
    claim="At fixed lambda more steps mean stronger guidance: the implied weight grows with them.",
    setting="2-D mixture of well separated components, exact denoiser, scaled-linear betas, 10 to "
    "200 trailing DDIM steps, lambda = 0.2, 4000 samples; mean trace of the covariance of the "
    "class's two components",
    expected="0.229, 0.182, 0.168, 0.164, 0.162 at 10, 25, 50, 100, 200 steps; a clear fall from "
    "10 to 25 and from 25 to 50",
)
def steps() -> Finding:
    """Numbers agree, and the first two falls are clear of sampling error."""
    p = exact.separate()
    counts = (10, 25, 50, 100, 200)
    published = (0.229, 0.182, 0.168, 0.164, 0.162)
    traces = []
    for count in counts:
        x = exact.sample(p, SCHEDULE, "cfgpp(0.2)", count).x
        best = p.responsibilities(x).argmax(1)

        def within(rows: Tensor, x: Tensor = x, best: Tensor = best) -> Tensor:
            parts = [x[rows][best[rows] == k].var(0).sum() for k in (0, 1)]
            return torch.stack(parts).mean()

        traces.append(bootstrap(within, torch.arange(len(x)), resamples=200))
    checks = {
        f"agrees at {count} steps": agrees(v, known, 0.0005)
        for count, v, known in zip(counts, traces, published, strict=True)
    }
    checks["falls from 10 to 25"] = below(difference(traces[1], traces[0]))
    checks["falls from 25 to 50"] = below(difference(traces[2], traces[1]))
    return Finding({"steps": list(counts), "trace": traces}, checks, nfe=400)
