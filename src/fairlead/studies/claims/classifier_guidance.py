"""Claims of classifier guidance."""

from typing import Any

import fairlead as fl
from fairlead.exact import GaussianMixture, TiltedDensity
from fairlead.metrics import Estimate, bootstrap, mean_interval
from fairlead.schedules import VP
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees, equals

# mean and standard deviation by scale of what DDIM samples
SAMPLED = {2.0: (1.60, 0.76), 4.0: (2.33, 0.59)}
LAW = {2.0: (1.29, 0.86), 4.0: (1.54, 0.77)}
N = 20_000


@claim(
    "classifier_guidance",
    ids=("XP1",),
    claim="The gradient of a noise-aware classifier turns an unconditional model into the "
    "conditional one at scale 1, and is CFG at the same scale beyond; neither samples the "
    "sharpened law p(x) p(c|x)^k.",
    setting="1-D mixture, means +-1, std 1, exact model and classifier, VP, 400 DDIM steps, 20000 "
    "samples, k = 2, 4; the identity with 60 steps in float64 at k = 1, 2, 4",
    expected="largest difference to CFG below 1e-9; mean, std of the samples 1.60, 0.76 (k = 2) "
    "and 2.33, 0.59 (k = 4), of the law 1.29, 0.86 and 1.54, 0.77",
)
def sharpened() -> Finding:
    """Identity to CFG, the numbers of the samples and of the law."""
    p = GaussianMixture([[-1.0], [1.0]], 1.0, labels=[0, 1])
    judge = fl.energy.Posterior(p, 1)
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    apart = 0.0
    for k in (1.0, 2.0, 4.0):
        cfg = exact.sample(p, VP(), f"cfg({k})", 60, label=1, n=500).x
        led = exact.sample(p, VP(), fl.ClassifierGuidance(judge, k), 60, label=-1, n=500).x
        apart = max(apart, (cfg - led).abs().max().item())
    measured["largest difference to CFG"] = apart
    checks["equals CFG"] = apart < 1e-9
    for k, (mean, std) in SAMPLED.items():
        x = exact.sample(p, VP(), fl.ClassifierGuidance(judge, k), 400, label=-1, n=N).x[:, 0]
        centre: Estimate = mean_interval(x)
        width = bootstrap(lambda y: y.std(0), x, resamples=200)
        law = TiltedDensity(p, 1, k)
        measured[f"k = {k:g}"] = {
            "mean": centre,
            "std": width,
            "law": [law.mean.item(), law.cov.sqrt().item()],
        }
        checks[f"k = {k:g}, mean"] = agrees(centre, mean, 0.005)
        checks[f"k = {k:g}, std"] = agrees(width, std, 0.005)
        for found, known in zip((law.mean.item(), law.cov.sqrt().item()), LAW[k], strict=True):
            checks[f"k = {k:g}, law {known}"] = equals(found, known, 0.005)
        checks[f"k = {k:g}, samples are not the law"] = centre.low > law.mean.item()
    return Finding(measured, checks, nfe=400)
