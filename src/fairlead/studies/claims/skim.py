"""Claims of skimmed guidance."""

from fairlead.schedules import EDM
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._pixels import Pixels, burnt, correlation, waves
from fairlead.studies.claims._verdict import above, below, difference


@claim(
    "skim",
    ids=("SKIM",),
    claim="Skimming lets much higher scales be used without burning, and follows the condition "
    "better.",
    setting="8x8 Gaussian images, exact predictions, sigma 80 to 0.002, rho 7, 64 DDIM steps, "
    "w = 8 and 16, skimmed at 3, 500 samples",
    expected="at both scales fewer pixels beyond 0.99 than under CFG, and a correlation with the "
    "class mean no lower than under CFG at w = 3",
)
def pixels() -> Finding:
    """Both orders clear of sampling error."""
    model = Pixels(waves(), EDM())
    measured, checks = {}, {}
    plain = correlation(model.draw("cfg(3)", 64, 500).x, waves())
    for w in (8, 16):
        cfg = model.draw(f"cfg({w})", 64, 500).x
        out = model.draw(f"cfg({w}) | skim(3)", 64, 500).x
        measured[f"w = {w}"] = {
            "saturated, CFG": burnt(cfg),
            "saturated, skimmed": burnt(out),
            "correlation, CFG": correlation(cfg, waves()),
            "correlation, skimmed": correlation(out, waves()),
        }
        checks[f"fewer saturated pixels, w = {w}"] = below(difference(burnt(out), burnt(cfg)))
        checks[f"follows the condition as at w = 3, w = {w}"] = above(
            difference(correlation(out, waves()), plain), -0.005
        )
    measured["correlation, CFG at w = 3"] = {"value": plain}
    return Finding(measured, checks, nfe=128)
