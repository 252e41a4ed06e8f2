"""Claim of smoothed energy guidance."""

from typing import Any

from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, below


@claim(
    "seg",
    ids=("S022",),
    claim="Guiding away from blurred attention queries improves unconditional samples, and more "
    "so the wider the blur.",
    setting="digits, null condition, 1000 samples, 16 steps of DPM-Solver++(2M), s = 3 in all "
    "attention layers, widths 0.5 and infinite",
    expected="at infinite width classifier confidence up and Fréchet distance down against s = 0 "
    "and against width 0.5, 95 % intervals over samples on the same noise",
    models=("digits",),
)
def digits() -> Finding:
    """All four changes clear of zero."""
    base = draw()
    narrow = draw("seg(3.0, width=0.5, layers='**')")
    wide = draw("seg(3.0, layers='**')")
    measured: dict[str, Any] = {"FD": [base.fd, narrow.fd, wide.fd]}
    checks: dict[str, Check] = {}
    for name, other in (("s = 0", base), ("width 0.5", narrow)):
        confidence = images.confidence_change(wide, other)
        fd = images.fd_change(wide, other)
        measured |= {f"confidence less that at {name}": confidence, f"FD less that at {name}": fd}
        checks |= {f"confidence above {name}": above(confidence), f"FD below {name}": below(fd)}
    return Finding(measured, checks, wide.nfe)


def draw(guide: str = "none") -> images.Samples:
    """Samples of the digits."""
    return images.draw("digits", guide, null=True, n=1000, half=False)
