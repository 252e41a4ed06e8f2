"""Claims of training-free guidance."""

import fairlead as fl
from fairlead.studies.claims import _inverse as inverse
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees, below, difference

# energy distance to the posterior with each step taken once and three times
PUBLISHED = {"rho": (0.137, 0.086), "mu": (0.223, 0.171), "ugd": (0.115, 0.039)}


@claim(
    "tfg",
    ids=("S128", "XP2"),
    claim="One algorithm holds the training-free methods as corners; guidance through the network "
    "and guidance at the estimate have different biases, and recurrence lowers both.",
    setting=f"{inverse.SETTING}; rho = 0.05; mu = 0.05 with one inner step; universal guidance "
    f"with "
    "s = 1 and no inner step; each with steps taken once and three times",
    expected="energy distance to the posterior: unguided 0.450; rho 0.137, 0.086; mu 0.223, 0.171; "
    "universal 0.115, 0.039; the steps make the measurement too tight (std below 0.2 for rho and "
    "mu)",
)
def corners() -> Finding:
    """Each number agrees, and each corner is closer to the posterior than no guidance."""
    e = inverse.energy()
    guides = {
        "rho": fl.TFG(e, rho=0.05, mu=0.0),
        "mu": fl.TFG(e, rho=0.0, mu=0.05, iterations=1),
        "ugd": fl.UGD(e, 1.0),
    }
    plain = inverse.distance(inverse.sample("none"))
    measured: dict[str, object] = {"unguided": plain}
    checks = {"unguided": agrees(plain, 0.450, 0.0005)}
    for name, guide in guides.items():
        once = inverse.sample(guide)
        thrice = inverse.sample(guide, sampler="recurrence('ddim(eta=1.0)', times=3)")
        found = [inverse.distance(x) for x in (once, thrice)]
        measured[name] = {
            "once": found[0],
            "three times": found[1],
            "std of the measurement": inverse.width(once),
        }
        for value, number, times in zip(found, PUBLISHED[name], (1, 3), strict=True):
            checks[f"{name}, times = {times}"] = agrees(value, number, 0.0005)
        checks[f"{name} is closer than unguided"] = below(difference(found[0], plain))
        if name != "ugd":
            checks[f"{name} is too tight"] = inverse.width(once) < 0.2
    return Finding(measured, checks, nfe=50)
