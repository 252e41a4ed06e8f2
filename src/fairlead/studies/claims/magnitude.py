"""Claims of magnitude-aware guidance."""

from fairlead.schedules import RectifiedFlow
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._pixels import Pixels, burnt, correlation, waves
from fairlead.studies.claims._verdict import above, below, difference

GUIDES = {"cond": "none", "CFG": "cfg(10)", "magnitude": "cfg(10) | magnitude(8)"}


@claim(
    "magnitude",
    ids=("XC11",),
    claim="Damping guidance where both predictions lie far apart keeps high scales from burning.",
    setting="8x8 Gaussian images, exact velocities, straight paths, 10 and 64 Euler steps, w = 10, "
    "a = 8, 500 samples",
    expected="at both numbers of steps fewer pixels beyond 0.99 than under CFG, and a higher "
    "correlation with the class mean than without guidance",
)
def pixels() -> Finding:
    """Both orders clear of sampling error."""
    model = Pixels(waves(), RectifiedFlow())
    measured, checks = {}, {}
    for steps in (10, 64):
        runs = {name: model.draw(guide, steps, 500, "euler").x for name, guide in GUIDES.items()}
        share = {name: burnt(x) for name, x in runs.items()}
        like = {name: correlation(x, waves()) for name, x in runs.items()}
        measured[f"{steps} steps"] = {"saturated": share, "correlation": like}
        checks[f"fewer saturated pixels, {steps} steps"] = below(
            difference(share["magnitude"], share["CFG"])
        )
        checks[f"it still guides, {steps} steps"] = above(
            difference(like["magnitude"], like["cond"])
        )
    return Finding(measured, checks, nfe=128)
