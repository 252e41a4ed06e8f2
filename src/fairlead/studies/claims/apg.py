"""Claims of adaptive projected guidance."""

import math

from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below

# the paper's cap for EDM2-S latents, 4x64x64 numbers of the same deviation 0.5, per number
CAP = round(2.5 * math.sqrt(3 * 32 * 32 / (4 * 64 * 64)), 2)


@claim(
    "apg",
    ids=("S016",),
    claim="At high scales APG lowers saturation and Fréchet distance of CFG at equal accuracy.",
    setting=f"cifar10, {images.SETTING}, w = 4 and 8, eta = 0, "
    f"beta = -0.75, r = {CAP}, which is the paper's EDM2-S setting for this many numbers",
    expected="at both scales saturation and Fréchet distance below CFG's, accuracy not lower by "
    "0.05 or more; 95 % intervals over samples on the same noise",
    models=("cifar10",),
)
def cifar10() -> Finding:
    """All three statements at both scales."""
    measured, checks = {}, {}
    nfe = 0.0
    for w in (4.0, 8.0):
        plain = images.draw(guide=f"cfg({w})")
        projected = images.draw(guide=f"cfg({w}) | apg(r={CAP}, beta=-0.75)")
        changes = {
            "saturation": images.saturation_change(projected, plain),
            "FD": images.fd_change(projected, plain),
            "accuracy": images.accuracy_change(projected, plain),
        }
        measured[f"CFG, w = {w:g}"] = {**plain.summary(), "saturation": plain.saturation}
        measured[f"APG, w = {w:g}"] = {**projected.summary(), "saturation": projected.saturation}
        measured[f"changes, w = {w:g}"] = changes
        checks[f"less saturated, w = {w:g}"] = below(changes["saturation"])
        checks[f"FD down, w = {w:g}"] = below(changes["FD"])
        checks[f"accuracy kept, w = {w:g}"] = above(changes["accuracy"], -0.05)
        nfe = projected.nfe
    return Finding(measured, checks, nfe)
