"""Claim of self-attention guidance."""

from typing import Any

from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, below

GUIDE = "{}(0.5{})"


@claim(
    "sag",
    ids=("S027",),
    claim="SAG improves unconditional samples without training; blurring everywhere degrades "
    "them sooner.",
    setting="digits, null condition, 1000 samples, 16 steps of DPM-Solver++(2M), s = 0.5, blur of "
    "width 1, mask from the 4x4 attention of the way up",
    expected="classifier confidence up and Fréchet distance down against s = 0, and Fréchet "
    "distance below that of blur guidance, 95 % intervals over samples on the same noise",
    models=("digits",),
)
def digits() -> Finding:
    """All three changes clear of zero."""
    base = draw()
    guided = draw(GUIDE.format("sag", ", layers='up.0'"))
    everywhere = draw(GUIDE.format("blur", ""))
    confidence = images.confidence_change(guided, base)
    fd, against = images.fd_change(guided, base), images.fd_change(guided, everywhere)
    measured: dict[str, Any] = {
        "FD of s = 0, SAG, blur": [base.fd, guided.fd, everywhere.fd],
        "confidence change": confidence,
        "FD change": fd,
        "FD less that of blur": against,
    }
    checks: dict[str, Check] = {
        "confidence up": above(confidence),
        "FD down": below(fd),
        "FD below blur": below(against),
    }
    return Finding(measured, checks, guided.nfe)


def draw(guide: str = "none") -> images.Samples:
    """Samples of the digits."""
    return images.draw("digits", guide, null=True, n=1000, half=False)
