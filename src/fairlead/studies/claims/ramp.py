"""Claims of progressive guidance, and of guidance over token maps of growing size."""

import torch

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.metrics import bootstrap, mean_interval
from fairlead.schedules import EDM
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, agrees, below, difference

GUIDES = {
    "falling": "cfg(2) | ramp(4, 0)",
    "constant": "cfg(3)",
    "rising": "cfg(2) | ramp(0, 4)",
}
# mean and standard deviation of the fine coordinate, mean of the coarse one
PUBLISHED = {
    "falling": (0.64, 0.293, 1.34),
    "constant": (0.69, 0.265, 1.32),
    "rising": (0.73, 0.242, 1.30),
}


@claim(
    "ramp",
    ids=("S049",),
    claim="A scale that falls keeps the gain in coarse structure of a large early scale and the "
    "fine variety of a small late one.",
    setting="four classes at (±0.9, ±0.3), variance 0.16, exact denoiser, sigma 80 to 0.002, rho "
    "7, 64 Euler steps, scales 5 to 1, 3, and 1 to 5, 6000 samples",
    expected="coarse accuracy 1.000 for all three, 0.989 without guidance; fine coordinate mean "
    "0.64, 0.69, 0.73 and std 0.293, 0.265, 0.242 (class: 0.3, 0.4); coarse mean 1.34, 1.32, 1.30",
)
def mixture() -> Finding:
    """Each number agrees; the fine spread falls in that order, clear of sampling error."""
    means = [[0.9, 0.3], [0.9, -0.3], [-0.9, 0.3], [-0.9, -0.3]]
    p = GaussianMixture(means, 0.16, labels=[0, 1, 2, 3])
    runs = {
        name: exact.sample(p, EDM(), guide, 64, n=6000, sampler="euler").x
        for name, guide in {"none": "none", **GUIDES}.items()
    }
    coarse = {k: mean_interval((x[:, 0] > 0).double()) for k, x in runs.items()}
    fine = {k: mean_interval(x[:, 1]) for k, x in runs.items()}
    far = {k: mean_interval(x[:, 0]) for k, x in runs.items()}
    wide = {k: bootstrap(lambda y: y.std(), x[:, 1], resamples=200) for k, x in runs.items()}
    checks: dict[str, Check] = {"coarse, none": agrees(coarse["none"], 0.989, 0.0005)}
    for k, (mean, std, first) in PUBLISHED.items():
        checks[f"coarse accuracy, {k}"] = above(coarse[k], 0.9985)
        checks[f"fine mean, {k}"] = agrees(fine[k], mean, 0.005)
        checks[f"fine std, {k}"] = agrees(wide[k], std, 0.0005)
        checks[f"coarse mean, {k}"] = agrees(far[k], first, 0.005)
    checks["falling keeps more variety"] = above(difference(wide["falling"], wide["constant"]))
    checks["rising keeps less"] = below(difference(wide["rising"], wide["constant"]))
    measured = {
        "coarse accuracy": coarse,
        "fine mean": fine,
        "fine std": wide,
        "coarse mean": far,
    }
    return Finding(measured, checks, nfe=127)


@claim(
    "ramp-scales",
    ids=("S102",),
    claim="Guidance that grows with the scale of the token map and is off at the last scales "
    "sharpens those in between and costs nothing where it is off.",
    setting="random logits for three scales of 500 positions and 3 tokens, null logits 0.3 times "
    "the conditional ones plus noise of 0.5, k = 6, guidance off from scale 2 and from scale 3",
    expected="entropy at scale 0 that of the conditional model, lower at scale 1 for both and at "
    "scale 2 for the later cut, that of the conditional model behind a cut; the null is asked for "
    "at the guided scales alone",
)
def tokens() -> Finding:
    """Equal entropies to 1e-12, lower ones clear of sampling error, and the null's steps."""
    draws = torch.Generator().manual_seed(0)
    cond = torch.randn(3, 500, 3, generator=draws, dtype=torch.float64)
    null = 0.3 * cond + 0.5 * torch.randn(3, 500, 3, generator=draws, dtype=torch.float64)
    plain = [_entropy(torch.log_softmax(c, -1)) for c in cond]
    measured = {"conditional": [mean_interval(e) for e in plain]}
    checks: dict[str, Check] = {}
    for off in (2, 3):
        run = fl.Run(steps=3, record=False)
        guide = f"cfg(7) | ramp(0, 1) | interval(0, {off / 3})"
        found = []
        for c, u in zip(cond, null, strict=True):
            given = {"cond": c, "null": u}
            found.append(_entropy(fl.combine(guide, given, run=run, domain="logprob")))
        measured[f"off from scale {off}"] = [mean_interval(e) for e in found]
        asked = [any(b.name == "null" for b in e.wanted) for e in run.report.entries]
        checks[f"the null's scales, off from {off}"] = asked == [0 < i < off for i in range(3)]
        for i in range(3):
            change = found[i] - plain[i]
            if 0 < i < off:
                checks[f"sharper at scale {i}, off from {off}"] = below(mean_interval(change))
            else:
                same = change.abs().max().item() < 1e-12
                checks[f"conditional at scale {i}, off from {off}"] = same
    return Finding(measured, checks)


def _entropy(logp: torch.Tensor) -> torch.Tensor:
    return -(logp.exp() * logp).sum(-1)
