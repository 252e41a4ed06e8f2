"""Claims of guiding a model by one that was tuned on a single sample."""

import torch

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.metrics import mean_interval
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below, difference

SOURCE = (0.6, 0.9)


@claim(
    "sine",
    ids=("S051",),
    claim="Mixing in a model tuned on one sample brings samples nearer to it while they stay in "
    "the wanted class; the tuned model alone forgets the class.",
    setting="three overlapping classes in 2-D, class 0, exact denoisers; the tuned model is "
    "N(source, 0.05) whatever the class, its source a point of class 2; w = 3, 40 DDIM steps, 4000 "
    "samples, active in the first 60 % of the steps, 1 - v = 0, 0.3 and 0.6",
    expected="the distance to the source falls with 1 - v; the probability of class 0 stays above "
    "0.5 at v = 0.7 and falls below 0.5 for the tuned model alone",
)
def one_sample() -> Finding:
    """The distance falls, and the class holds."""
    mixture = exact.three_classes()
    schedule = fl.schedules.EDM(sigma_min=0.02, sigma_max=20.0)
    tuned = GaussianMixture([list(SOURCE)], 0.05).denoiser(schedule)
    own = torch.full((exact.N,), -1)
    options = {"models": {"tuned": tuned}, "states": {"source": {"label": own}}}
    source = torch.tensor(SOURCE, dtype=torch.float64)
    measured, distances, classes = {}, [], []
    for v in (1.0, 0.7, 0.4):
        guide = f"cfg(3) + (sine(3, v={v}, state='source') | interval(0, 0.6))"
        x = exact.sample(mixture, schedule, guide, 40, **options).x  # type: ignore[arg-type]
        distances.append(mean_interval((x - source).norm(dim=1)))
        classes.append(exact.posterior(mixture, x))
        measured[f"v = {v:g}"] = {"distance": distances[-1], "class 0": classes[-1]}
    alone = fl.sample(tuned, {"label": own}, sampler="ddim", steps=40, dtype=torch.float64).x
    forgotten = exact.posterior(mixture, alone)
    measured["tuned alone"] = {"class 0": forgotten}
    checks = {
        "nearer at v = 0.7": above(difference(distances[0], distances[1])),
        "nearer still at v = 0.4": above(difference(distances[1], distances[2])),
        "the class holds at v = 0.7": above(classes[1], 0.5),
        "the tuned model forgets it": below(forgotten, 0.5),
    }
    return Finding(measured, checks, nfe=2 * 40 + 24)
