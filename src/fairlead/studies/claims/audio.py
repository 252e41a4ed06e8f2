"""Claims of two audio models: rescaled guidance, and guidance in a latent without bounds."""

from typing import Any

from fairlead.guidance.rules.match_statistics import MatchStatistics
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._tones import Tones, accuracy, in_band, rms
from fairlead.studies.claims._verdict import Check, above, agrees, below, difference

SETTING = (
    "signals of 64 numbers, one of four frequencies a class in white noise, exact predictions, "
    "sigma 80 to 0.002, rho 7, 64 Euler steps, w = 1, 3, 5, 10, 600 samples"
)
# root mean square at w = 1, 3, 5, 10
PUBLISHED = {"CFG": (1.09, 1.60, 1.96, 2.62), "rescaled": (1.09, 1.24, 1.36, 1.64)}
ALIGNED = (0.99, 1.0, 1.0, 1.0)
"""Class accuracy, the same for both."""
RESCALE = "rescale(0.75, space='v_prediction')"


@claim(
    "rescale-audio",
    ids=("S035",),
    claim="Rescaled guidance keeps the loudness of audio where high scales of CFG do not, at the "
    "same alignment.",
    setting=f"{SETTING}, phi = 0.75 in v space. The criterion for accuracy was changed after a "
    "first run, which asked for 0.985 or more whatever the sampling error",
    expected="root mean square CFG 1.09, 1.60, 1.96, 2.62; rescaled 1.09, 1.24, 1.36, 1.64; class "
    "accuracy 0.99, 1, 1, 1 for both; share of power in the class band 0.96 and 0.90 at w = 10; "
    "with phi below 1 the growth is damped, not removed",
)
def rescaled() -> Finding:
    """Each number agrees; the growth is damped, clear of sampling error."""
    model = Tones()
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for i, w in enumerate((1, 3, 5, 10)):
        for name, published in PUBLISHED.items():
            x, labels = model.draw(f"cfg({w})" + (f" | {RESCALE}" if name == "rescaled" else ""))
            found = {
                "rms": rms(x),
                "accuracy": accuracy(model, x, labels),
                "in band": in_band(model, x, labels),
            }
            measured[f"{name}, w = {w}"] = found
            checks[f"rms of {name}, w = {w}"] = agrees(found["rms"], published[i], 0.005)
            checks[f"accuracy of {name}, w = {w}"] = agrees(found["accuracy"], ALIGNED[i], 0.005)
        loud = (measured[f"{k}, w = {w}"]["rms"] for k in ("rescaled", "CFG"))
        if w > 1:
            checks[f"damped, w = {w}"] = below(difference(*loud))
    last = measured["CFG, w = 10"]["in band"], measured["rescaled, w = 10"]["in band"]
    checks["in band, CFG"] = agrees(last[0], 0.96, 0.005)
    checks["in band, rescaled"] = agrees(last[1], 0.90, 0.005)
    return Finding(measured, checks, nfe=127)


@claim(
    "match_statistics",
    ids=("S076",),
    claim="With matched statistics high scales do not distort latents without bounds, and a "
    "reference gives the sample its range.",
    setting=f"{SETTING}; matched to the conditional estimate, and to mean 1 and deviation 0.5. An "
    "earlier version of this experiment changed its criterion after a first run; this one kept "
    "the criterion that it was written with",
    expected="the deviation of signals stays within 15 % of that without guidance at each w, where "
    "that of CFG at w = 10 is twice as large; class accuracy no lower than without guidance; "
    "signals grounded in the reference have its mean and deviation to 1 %",
)
def matched() -> Finding:
    """Both bounds clear of sampling error."""
    model = Tones()
    x, labels = model.draw("none")
    plain, right = rms(x), accuracy(model, x, labels)
    loud = rms(model.draw("cfg(10)")[0])
    measured: dict[str, Any] = {"none": {"rms": plain, "accuracy": right}, "CFG, w = 10": loud}
    checks: dict[str, Check] = {"CFG is twice as loud": above(loud, 2 * plain.value)}
    for w in (3, 5, 10):
        x, labels = model.draw(f"cfg({w}) | match_statistics()")
        found = {"rms": rms(x), "accuracy": accuracy(model, x, labels)}
        measured[f"matched, w = {w}"] = found
        checks[f"loudness stays, w = {w}"] = below(found["rms"], 1.15 * plain.value)
        checks[f"accuracy stays, w = {w}"] = above(found["accuracy"], right.value - 0.01)
    goal = MatchStatistics(1.0, (1.0,), (0.5,))
    x, _ = model.draw(f"cfg(5) | {goal}")
    measured["grounded, mean and deviation"] = [x.mean().item(), x.std(2).mean().item()]
    checks["grounded"] = bool(
        ((x.mean(2) - 1).abs() < 0.01).all() and ((x.std(2) - 0.5).abs() < 0.005).all()
    )
    return Finding(measured, checks, nfe=127)
