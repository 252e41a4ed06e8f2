"""Claims of fusing a scene model and a person model in three stages."""

from fairlead.metrics import mean_interval
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, difference
from fairlead.studies.claims.magic_fusion import both_halves, satisfied


@claim(
    "face_diffuser",
    ids=("S096",),
    claim="Fusing a text and a subject model in the middle of sampling keeps both the scene and "
    "the subject better than either model alone.",
    setting="the two exact models of the magic_fusion claim, the left half as the scene and the "
    "right half as the subject, w = 1, 64 Euler steps, 200 samples; also a hard switch from one "
    "model to the other at the middle of the fusion stage",
    expected="the share of samples with both halves right is larger in three stages than with the "
    "scene model, the subject model and the hard switch",
)
def stages() -> Finding:
    """The share of three stages lies above each other one's."""
    guides = {
        "three stages": "cfg(1) + face_diffuser(1)",
        "scene alone": "cfg(1)",
        "subject alone": "cfg(1) + face_diffuser(1, -1.0, -1.0)",
        "hard switch": "cfg(1) + face_diffuser(1, 0.45, 0.45)",
    }
    pairs = {name: both_halves(guide, "subject") for name, guide in guides.items()}
    shares = {name: mean_interval(satisfied(*pair)) for name, pair in pairs.items()}
    measured = {
        name: {"success": shares[name], "left, right": [mean_interval(h) for h in pair]}
        for name, pair in pairs.items()
    }
    first, *others = shares
    checks = {f"above {o}": above(difference(shares[first], shares[o])) for o in others}
    return Finding(measured, checks, nfe=2 * 39 + 4 * 19 + 2 * 6)
