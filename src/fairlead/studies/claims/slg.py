"""Claim of skip-layer guidance."""

from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below


@claim(
    "slg",
    ids=("XC8",),
    claim="Guiding away from a network without some of its middle blocks improves structure.",
    setting=f"cifar10, conditional, {images.SETTING}, s = 1 without the attention blocks of the "
    "coarsest level and the middle",
    expected="classifier accuracy up and Fréchet distance down against s = 0, 95 % intervals over "
    "samples on the same noise",
    models=("cifar10",),
)
def cifar10() -> Finding:
    """Both changes clear of zero."""
    base, guided = images.draw(), images.draw(guide="slg(1.0, 'mid,down.2,up.2')")
    accuracy = images.accuracy_change(guided, base)
    fd = images.fd_change(guided, base)
    return Finding(
        {"FD": [base.fd, guided.fd], "accuracy change": accuracy, "FD change": fd},
        {"accuracy up": above(accuracy), "FD down": below(fd)},
        guided.nfe,
    )
