"""Claims of time-step guidance."""

from fairlead.studies.claims import _images as images
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below

MODERATE = (0.3, 1.0)
LARGE = 10.0


@claim(
    "tsg",
    ids=("S001",),
    claim="Guiding away from a perturbed time embedding improves unconditional samples; too strong "
    "a perturbation hurts.",
    setting=f"cifar10, null condition, {images.SETTING}, w = 2, a = 1, "
    f"s = {MODERATE[0]} and {MODERATE[1]} (of order 1, as in the paper) and s = {LARGE:g}",
    expected="Fréchet distance down against w = 1 at one of the two moderate s, each by a 97.5 % "
    "interval, and higher at s = 10 than at the better of them, 95 %; samples on the same noise",
    models=("cifar10",),
)
def cifar10() -> Finding:
    """One moderate size clear of zero, with the intervals widened for the choice among two."""
    base = images.draw(null=True)
    runs = {s: images.draw(guide=f"tsg(2.0, s={s})", null=True) for s in (*MODERATE, LARGE)}
    changes = {s: images.fd_change(r, base, confidence=0.975) for s, r in runs.items()}
    better = [below(changes[s]) for s in MODERATE]
    best = min(MODERATE, key=lambda s: runs[s].fd)
    cost = images.fd_change(runs[LARGE], runs[best])
    helps = True if True in better else (None if None in better else False)
    return Finding(
        {
            "FD at w = 1": base.fd,
            "s": list(runs),
            "FD": [r.fd for r in runs.values()],
            "FD change": list(changes.values()),
            "large against best": cost,
        },
        {"moderate s helps": helps, "large s hurts": above(cost)},
        runs[best].nfe,
    )
