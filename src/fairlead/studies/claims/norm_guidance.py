"""Claims of norm-based guidance."""

from typing import Any

import fairlead as fl
from fairlead.energy import Posterior
from fairlead.exact import GaussianMixture
from fairlead.metrics import mean_interval
from fairlead.schedules import VP
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, agrees, difference

RATES = {0.0: 0.34, 0.1: 0.42, 0.3: 0.64, 0.6: 0.92}


@claim(
    "norm_guidance",
    ids=("S079",),
    claim="A classifier gradient as long as a share of the score guides evenly, whatever the scale "
    "of the classifier.",
    setting="2-D mixture, means (2, 0), (-1, 1.5), (0, -2), std 0.5, exact unconditional model and "
    "noisy classifier, target the first, VP, 200 steps of DDIM, eta = 1, 4000 samples; log p times "
    "0.1 and 10 with 40 steps",
    expected="target rate 0.34, 0.42, 0.64, 0.92 at rho = 0, 0.1, 0.3, 0.6; samples identical to "
    "1e-9 for log p times 0.1 and 10, while those of plain classifier guidance move",
)
def share_of_the_score() -> Finding:
    """Target rates, and invariance to the classifier's scale."""
    p = GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], 0.25, labels=[0, 1, 2])
    judge = Posterior(p, 0)
    options: dict[str, Any] = {"label": -1, "sampler": "ddim(eta=1.0)"}
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    rates = {}
    for rho, number in RATES.items():
        x = exact.sample(p, VP(), fl.NormGuidance(judge, rho), 200, **options).x
        hit = (p.log_posterior(x).argmax(1) == 0).double()
        rates[rho] = mean_interval(hit)
        checks[f"rho = {rho:g}"] = agrees(rates[rho], number, 0.005)
    measured["rate"] = {f"rho = {k:g}": v for k, v in rates.items()}
    checks["rises"] = above(difference(rates[0.6], rates[0.3]))
    moved: dict[str, float] = {}
    for name, guide in (("norm", fl.NormGuidance), ("plain", fl.ClassifierGuidance)):
        base = exact.sample(p, VP(), guide(judge, 0.3), 40, n=500, **options).x
        for k in (0.1, 10.0):
            x = exact.sample(p, VP(), guide(k * judge, 0.3), 40, n=500, **options).x
            moved[f"{name}, times {k:g}"] = (x - base).norm(dim=1).median().item()
    measured["median change"] = moved
    checks["scale invariant"] = max(moved["norm, times 0.1"], moved["norm, times 10"]) < 1e-9
    checks["plain is not"] = min(moved["plain, times 0.1"], moved["plain, times 10"]) > 1e-3
    return Finding(measured, checks, nfe=200)
