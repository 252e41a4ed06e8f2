"""Claims of methods that optimise over whole trajectories."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.energy import Posterior
from fairlead.exact import GaussianMixture
from fairlead.metrics import mean_interval
from fairlead.schedules import VP, RectifiedFlow
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, difference
from fairlead.trajectories import discriminative_token, rectifid


@claim(
    "rectifid",
    ids=("S131",),
    claim="Fixed-point iteration over a few segments of a flow, anchored to the unguided "
    "trajectory, lowers the energy of a discriminator of clean samples to its optimum.",
    setting="2-D mixture, means (2, 0), (-1, 1.5), (0, -2), std 0.6, exact rectified flow, 4 "
    "segments of 6 Heun steps, energy |z - (1, 1)|^2 / 2, 64 noises; s = 0.1 without a bound, "
    "accumulating and not, and s = 0.02 with the bound 1",
    expected="mean energy from about 3.0 to below 0.05 after 20 iterations and below 0.005 after "
    "40 (s = 0.1); it stalls above 1 without accumulation; with the bound it falls monotonically "
    "at s = 0.02, below 0.1 after 40",
)
def anchored() -> Finding:
    """Energies by iteration in three forms."""
    p = GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], 0.36)

    def far(z: Tensor) -> Tensor:
        return (z - 1).square().sum(1) / 2

    forms: dict[str, dict[str, Any]] = {
        "accumulating": {"s": 0.1, "clip": None},
        "not accumulating": {"s": 0.1, "clip": None, "accumulate": False},
        "bounded": {"s": 0.02, "clip": 1.0},
    }
    histories = {}
    for name, options in forms.items():
        given: dict[str, Any] = {"sampler": "heun", "substeps": 6, "iterations": 40, **options}
        found = rectifid(
            p.denoiser(RectifiedFlow()), energy=far, n=64, dtype=torch.float64, **given
        )
        histories[name] = found.history
    fast, slow, held = histories.values()
    return Finding(
        {k: [v[i] for i in (0, 5, 20, 40)] for k, v in histories.items()},
        {
            "below 0.05 after 20": fast[21] < 0.05,
            "below 0.005 after 40": fast[-1] < 0.005,
            "stalls without accumulation": min(slow[-10:]) > 1,
            "bounded: monotone": all(b <= a + 1e-9 for a, b in pairwise(held)),
            "bounded: below 0.1": held[-1] < 0.1,
        },
        nfe=found.nfe,
    )


class _Weights(fl.Denoiser):
    """The exact denoiser of three classes whose condition is logits of their weights."""

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        super().__init__(
            lambda x, t, token: x, VP(), "sample", null={"token": torch.zeros(3)}, shape=(2,)
        )

    def predict(self, x: Tensor, level: Any, condition: Any) -> Tensor:
        token = condition["token"].to(x)
        each = torch.stack([self.mixture.x0(x, level, c) for c in range(3)], 1)
        joint = self.mixture.log_posterior(x, level) + token  # equal prior weights
        mean: Tensor = (joint.softmax(1)[..., None] * each).sum(1)
        return mean


@claim(
    "discriminative_token",
    ids=("S206",),
    claim="A condition learned through the last sampling step makes a classifier find the wanted "
    "class, also for new noise.",
    setting="three classes, means (0, 2), (-2, -1), (2, -1), std 0.8, condition = logits of the "
    "class weights, null = equal weights, exact clean posterior as the classifier, cfg(3), 30 DDIM "
    "steps, 5 samples an update from one seed, 50 updates at rate 0.05 without early stop; 600 new "
    "samples",
    expected="share of the wanted class about 0.33 before, above 0.9 after",
)
def learned() -> Finding:
    """Share of the class before and after, on new noise."""
    p = GaussianMixture([[0.0, 2.0], [-2.0, -1.0], [2.0, -1.0]], 0.64, labels=[0, 1, 2])
    d = _Weights(p)
    judge = Posterior(p, 1, noisy=False)
    start = torch.zeros(3, dtype=torch.float64)
    token = discriminative_token(
        d, "token", start, judge, guide="cfg(3)", rate=0.05, enough=1.0, patience=50,
        dtype=torch.float64,
    )  # fmt: skip
    shares = {}
    for name, value in (("before", start), ("after", token.value)):
        out = fl.sample(
            d, {"token": value.expand(600, 3)}, guide="cfg(3)", sampler="ddim", steps=30, seed=9,
            dtype=torch.float64, record=False,
        )  # fmt: skip
        shares[name] = mean_interval((p.log_posterior(out.x).argmax(1) == 1).double())
    return Finding(
        {**shares, "token": token.value, "updates": len(token.accuracy)},
        {
            "a third before": abs(shares["before"].value - 1 / 3) < 0.08,
            "above 0.9 after": above(shares["after"], 0.9),
            "rises": above(difference(shares["after"], shares["before"])),
        },
        nfe=60,
    )
