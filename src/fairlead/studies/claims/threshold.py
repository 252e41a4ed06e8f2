"""Claims of static and dynamic thresholding."""

from fairlead.schedules import EDM
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._pixels import Pixels, burnt, correlation, deviation, waves
from fairlead.studies.claims._verdict import agrees, below, difference

# share of pixels beyond 0.99, standard deviation, correlation with the mean of the class
PUBLISHED = {
    "none": ("cfg(8)", 0.227, 0.70, 0.999),
    "static": ("cfg(8) | threshold(ceiling=1)", 0.091, 0.58, 0.990),
    "dynamic": ("cfg(8) | threshold()", 0.018, 0.49, 0.991),
}


@claim(
    "threshold",
    ids=("XC5", "S088"),
    claim="Thresholding keeps samples from saturating at high scales, the dynamic form more than "
    "the static one.",
    setting="8x8 Gaussian images, exact predictions, w = 8, sigma 80 to 0.002, rho 7, 64 DDIM "
    "steps, p = 0.995, 500 samples",
    expected="share of pixels beyond 0.99, standard deviation, correlation with the class mean: "
    "none 0.227, 0.70, 0.999; static 0.091, 0.58, 0.990; dynamic 0.018, 0.49, 0.991",
)
def pixels() -> Finding:
    """The saturated share falls from form to form, and each number agrees."""
    model = Pixels(waves(), EDM())
    measured, checks = {}, {}
    for form, (guide, share, std, like) in PUBLISHED.items():
        x = model.draw(guide, 64, 500).x
        found = {"saturated": burnt(x), "std": deviation(x), "correlation": correlation(x, waves())}
        measured[form] = found
        checks[f"saturated, {form}"] = agrees(found["saturated"], share, 0.0005)
        checks[f"std, {form}"] = agrees(found["std"], std, 0.005)
        checks[f"correlation, {form}"] = agrees(found["correlation"], like, 0.0005)
    for more, less in (("none", "static"), ("static", "dynamic")):
        change = difference(measured[less]["saturated"], measured[more]["saturated"])
        checks[f"{less} saturates less than {more}"] = below(change)
    return Finding(measured, checks, nfe=128)
