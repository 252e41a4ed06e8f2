"""Claim of skip-layer guidance."""

from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below


@claim(
    "slg",
    ids=("XC8",),
    claim="Guiding away from a network without some of its middle blocks improves structure.",
    setting="digits, conditional, 1000 samples, 16 steps of DPM-Solver++(2M), s = 1 without the "
    "attention blocks of the coarsest level and the middle",
    expected="classifier accuracy up and Fréchet distance down against s = 0, 95 % intervals over "
    "samples on the same noise",
    models=("digits",),
)
def digits() -> Finding:
    """Both changes clear of zero."""
    base, guided = draw(), draw("slg(1.0, 'mid,down.1,up.1')")
    accuracy = images.accuracy_change(guided, base)
    fd = images.fd_change(guided, base)
    return Finding(
        {"FD": [base.fd, guided.fd], "accuracy change": accuracy, "FD change": fd},
        {"accuracy up": above(accuracy), "FD down": below(fd)},
        guided.nfe,
    )


def draw(guide: str = "none") -> images.Samples:
    """Samples of the digits."""
    return images.draw("digits", guide, n=1000, half=False)
