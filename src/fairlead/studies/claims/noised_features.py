"""Claims of guidance by similarity in a noised feature space."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead.exact import GaussianMixture, energy_distance
from fairlead.metrics import mean_interval
from fairlead.schedules import VP, Level
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below, difference

N = 3000


def mixture() -> GaussianMixture:
    """Three classes in the plane."""
    return GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], 0.64, labels=[0, 1, 2])


@claim(
    "classifier_guidance-features",
    ids=("S056",),
    claim="Guidance by similarity in a noised feature space follows its condition at a larger "
    "departure from the conditional law than classifier-free guidance; only the exact score of "
    "such a space makes the two equal.",
    setting="2-D mixture of three classes, std 0.8, exact model, DDIM, 100 steps, 3000 samples of "
    "class 0; similarity 5 cos(z, e_c), z the exact noisy class posteriors, scale 1 on the "
    "unconditional model, against CFG at w = 1.5 and 2; the exact score log p(c|x) - log p(c) at "
    "scale 1.5 and 3",
    expected="the exact score equals CFG within 1e-9; CFG at w = 2 has a higher mean log p(c|x0) "
    "than the similarity and a smaller energy distance to p(x|c), by intervals",
)
def features() -> Finding:
    """The identity, and what both reach at which distance."""
    p = mixture()

    def encoder(x: Tensor, level: Level) -> Tensor:
        return p.log_posterior(x, level).exp()

    similar = fl.energy.Similarity(encoder, torch.tensor([1.0, 0.0, 0.0]), 5.0, noisy=True)

    score = fl.energy.Function(
        lambda x, level: -p.log_posterior(x, level)[:, 0], name="score", noisy=True
    )
    apart = 0.0
    for k in (1.5, 3.0):
        led = exact.sample(p, VP(), fl.ClassifierGuidance(score, k), 100, label=-1, n=500).x
        cfg = exact.sample(p, VP(), f"cfg({k})", 100, n=500).x
        apart = max(apart, (led - cfg).abs().max().item())
    guide = fl.ClassifierGuidance(similar, 1.0)
    runs = {
        "similarity": exact.sample(p, VP(), guide, 100, label=-1, n=N).x,
        "cfg, 1.5": exact.sample(p, VP(), "cfg(1.5)", 100, n=N).x,
        "cfg, 2": exact.sample(p, VP(), "cfg(2)", 100, n=N).x,
    }
    truth = p.sample(N, 0, generator=torch.Generator().manual_seed(0))
    sure = {k: mean_interval(p.log_posterior(x)[:, 0]) for k, x in runs.items()}
    far = {k: energy_distance(x, truth, resamples=50) for k, x in runs.items()}
    return Finding(
        {"largest difference to CFG": apart, "log p(c|x0)": sure, "distance to p(x|c)": far},
        {
            "exact score is CFG": apart < 1e-9,
            "CFG is surer": above(difference(sure["cfg, 2"], sure["similarity"])),
            "CFG is closer": below(difference(far["cfg, 2"], far["similarity"])),
        },
        nfe=100,
    )
