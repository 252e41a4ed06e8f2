"""Claims of classifier-free guidance."""

from itertools import pairwise

from fairlead.exact import GaussianPair, t1_levels
from fairlead.schedules import EDM
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, agrees, below, difference, equals


@claim(
    "cfg",
    ids=("S006",),
    claim="Class accuracy rises and variety within a class falls with the scale.",
    setting="2-D mixture of three overlapping classes, exact denoiser, 200 DDIM steps from sigma "
    "40 to 0.001, 4000 samples of class 0",
    expected="w = 1, 2, 3, 8: mean p(c|x) 0.754, 0.946, 0.984, 0.999; trace of the covariance "
    "0.97, 0.63, 0.53, 0.40",
)
def mixture() -> Finding:
    """Both orders must be clear of sampling error, and each number must agree."""
    p = exact.three_classes()
    schedule = EDM(sigma_min=0.001, sigma_max=40.0, spacing="log_snr")
    scales = (1.0, 2.0, 3.0, 8.0)
    runs = [exact.sample(p, schedule, f"cfg({w})", 200).x for w in scales]
    right = [exact.posterior(p, x) for x in runs]
    wide = [exact.spread(x) for x in runs]
    checks = {}
    for i, w in enumerate(scales):
        checks[f"p(c|x) agrees at w={w:g}"] = agrees(
            right[i], (0.754, 0.946, 0.984, 0.999)[i], 0.0005
        )
        checks[f"trace agrees at w={w:g}"] = agrees(wide[i], (0.97, 0.63, 0.53, 0.40)[i], 0.005)
        if i:
            checks[f"p(c|x) rises to w={w:g}"] = above(difference(right[i], right[i - 1]))
            checks[f"trace falls to w={w:g}"] = below(difference(wide[i], wide[i - 1]))
    return Finding({"w": list(scales), "p(c|x)": right, "trace": wide}, checks, nfe=400)


@claim(
    "cfg-variance",
    ids=("S006", "S003"),
    claim="Guided ODE and guided SDE end in different distributions, and neither is the power "
    "tilted density.",
    setting="Gaussian pair N(0, 2), N(0, 1), w = 3, 1500 levels of sigma^2 from 400 to 1e-5; the "
    "samplers are linear there, so their end variances are computed without sampling",
    expected="ODE 2^(1-w) = 0.25, SDE (2 - 2^(2-2w))/(2w - 1) = 0.3875, tilted 2/(1+w) = 0.5, to "
    "3 % on these levels",
)
def variance() -> Finding:
    """DDIM and ancestral sampling come within 3 % of their closed forms, the tilted form is far."""
    pair, levels = GaussianPair(), t1_levels()
    start = levels[0].sigma ** 2 + pair.variance
    ode = exact.end_variance(pair, "ddim", "cfg(3.0)", levels, start)
    sde = exact.end_variance(pair, "ddpm", "cfg(3.0)", levels, start)
    tilted = pair.tilted_variance(3)
    return Finding(
        {"ODE": ode, "SDE": sde, "tilted": tilted},
        {
            "ODE": equals(ode, pair.ode_variance(3), 0.03 * 0.25),
            "SDE": equals(sde, pair.sde_variance(3), 0.03 * 0.3875),
            "tilted": equals(tilted, 0.5, 1e-12),
        },
        nfe=3000,
    )


@claim(
    "cfg-images",
    ids=("S006",),
    claim="Class accuracy rises and variety within a class falls with the scale.",
    setting=f"cifar10, {images.SETTING}, w = 1, 2, 4",
    expected="from scale to scale accuracy up and within-class feature distance down, 95 % "
    "intervals over samples on the same noise; Fréchet distance and recall are shown",
    models=("cifar10",),
)
def cifar10() -> Finding:
    """Both changes at both steps clear of zero."""
    scales = (1.0, 2.0, 4.0)
    runs = [images.draw(guide=f"cfg({w})") for w in scales]
    accuracy = [images.accuracy_change(b, a) for a, b in pairwise(runs)]
    diversity = [images.diversity_change(b, a) for a, b in pairwise(runs)]
    checks = {}
    for w, right, wide in zip(scales[1:], accuracy, diversity, strict=True):
        checks[f"accuracy up to w = {w:g}"] = above(right)
        checks[f"diversity down to w = {w:g}"] = below(wide)
    return Finding(
        {
            "w": list(scales),
            "accuracy": [r.accuracy for r in runs],
            "diversity": [r.diversity for r in runs],
            "FD": [r.fd for r in runs],
            "recall": [r.recall for r in runs],
            "accuracy changes": accuracy,
            "diversity changes": diversity,
        },
        checks,
        runs[-1].nfe,
    )
