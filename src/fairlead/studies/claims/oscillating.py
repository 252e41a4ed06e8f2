"""Claims of oscillating guidance."""

import torch
from torch import Tensor

from fairlead.exact import GaussianMixture
from fairlead.metrics import Estimate, mean_interval
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees
from fairlead.studies.claims.adaptive import levels

GUIDES = {
    "conditional": "none",
    "constant 8": "cfg(8.0)",
    "constant 15": "cfg(15.0)",
    "oscillating": "cfg(15.0) | oscillating()",
}
# mean norm relative to that of the means, four separate and four overlapping Gaussians
PUBLISHED = {
    "separate": {
        "conditional": 1.00,
        "constant 8": 1.43,
        "constant 15": 1.62,
        "oscillating": 1.46,
    },
    "overlapping": {
        "conditional": 1.10,
        "constant 8": 2.65,
        "constant 15": 3.42,
        "oscillating": 2.75,
    },
}


def cross(radius: float, deviation: float) -> GaussianMixture:
    """Four Gaussians on the axes, one class each."""
    means = [[radius, 0.0], [0.0, radius], [-radius, 0.0], [0.0, -radius]]
    return GaussianMixture(means, deviation**2, labels=[0, 1, 2, 3])


def norm(x: Tensor, radius: float) -> Estimate:
    """Mean length of the samples in units of the distance of the means."""
    return mean_interval(x.norm(dim=1) / radius)


@claim(
    "oscillating",
    ids=("S088",),
    claim="A high scale in turn with a low one keeps the agreement with the condition of the high "
    "scale, with much less saturation.",
    setting="four Gaussians at distance 3 (standard deviation 0.4) and at distance 1 (0.5), exact "
    "denoiser, 20 DDIM steps uniform in log(alpha/sigma) from -4 to 4, 1000 samples; mean norm "
    "relative to the distance, and share nearest to the class asked for",
    expected="norms 1.00, 1.43, 1.62, 1.46 and 1.10, 2.65, 3.42, 2.75 for no guidance, 8, 15 and "
    "15 with 1; share of the class 0.885 without and 1.00 with guidance where they overlap; the "
    "oscillating norm nearer to that of 8 than to that of 15",
)
def mixture() -> Finding:
    """Norms agree with those computed before; the order is that of the claim."""
    measured: dict[str, dict[str, object]] = {}
    checks: dict[str, Check] = {}
    schedule = exact.OnLevels(levels=levels(20))
    nfe = 0.0
    for name, (radius, deviation) in {"separate": (3.0, 0.4), "overlapping": (1.0, 0.5)}.items():
        p = cross(radius, deviation)
        norms, shares = {}, {}
        for kind, guide in GUIDES.items():
            out = exact.sample(p, schedule, guide, 20, n=1000)
            nfe = out.nfe.double().mean().item()
            norms[kind] = norm(out.x, radius)
            nearest = torch.cdist(out.x, p.means.to(out.x)).argmin(1)
            shares[kind] = mean_interval((nearest == 0).double())
            checks[f"norm, {name}, {kind}"] = agrees(norms[kind], PUBLISHED[name][kind], 0.005)
        low, high = norms["constant 8"].value, norms["constant 15"].value
        own = norms["oscillating"].value
        checks[f"nearer to 8, {name}"] = abs(own - low) < abs(own - high)
        measured[name] = {"norm": norms, "share": shares}
        if name == "overlapping":
            checks["share without guidance"] = agrees(shares["conditional"], 0.885, 0.0005)
            checks["share with guidance"] = all(
                shares[k].value > 0.995 for k in GUIDES if k != "conditional"
            )
    return Finding(measured, checks, nfe)
