"""Claims of soft value-based decoding."""

import math

import torch

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.studies.claims._harness import Finding, claim

N, LAM = 4000, 0.5
PROPOSALS = (1, 2, 4, 8, 16)


@claim(
    "svdd",
    ids=("S013",),
    claim="Choosing among proposals by the reward of the clean estimate moves samples to the "
    "tilted density without gradients, the closer the more proposals.",
    setting="mixture of N(-1, 0.3) and N(1, 0.3), weights 0.6 and 0.4, reward -(x - 1)^2 / 4, "
    "lam = 0.5, so that the target is a mixture in closed form; 60 ancestral steps, 4000 samples, "
    "M = 1, 2, 4, 8, 16; also M = 8 at lam = 0",
    expected="the mean moves towards the target's with M, and M = 16 leaves less than a half of "
    "the distance that M = 1 has (the estimate's own bias remains); lam = 0 goes past lam = 0.5 "
    "(the factor was chosen after an earlier run)",
)
def proposals() -> Finding:
    """The distance of means falls, and the best-of choice overshoots."""
    mixture = GaussianMixture([-1.0, 1.0], 0.3, [0.6, 0.4])
    denoiser = mixture.denoiser(fl.schedules.EDM(0.02, 30.0))

    def mean(m: int, lam: float) -> float:
        out = fl.sample(
            denoiser,
            {"label": torch.zeros(N, dtype=torch.long)},
            sampler=f"svdd(m={m}, lam={lam})",
            rewards={"reward": lambda x: -((x[:, 0] - 1) ** 2) / 4},
            steps=60,
            dtype=torch.float64,
            record=False,
        )
        return out.x.mean().item()

    target = _tilted_mean()
    means = {m: mean(m, LAM) for m in PROPOSALS}
    best = mean(8, 0.0)
    left = [abs(v - target) for v in means.values()]
    measured = {
        "target": target,
        **{f"M = {m}": v for m, v in means.items()},
        "M = 8, lam = 0": best,
    }
    checks = {
        "the distance falls with M": left == sorted(left, reverse=True),
        "less than half is left at M = 16": left[-1] < left[0] / 2,
        "lam = 0 goes further": best > means[8],
    }
    return Finding(measured, checks, nfe=60 * 8)


def _tilted_mean() -> float:
    """Mean of `sum_k w_k N(m_k, 0.3) exp(-(x - 1)^2 / 2)`: each part times N(1, 1)."""
    v = 0.3
    weights = [w * math.exp(-((m - 1) ** 2) / (2 * (1 + v))) for w, m in ((0.6, -1.0), (0.4, 1.0))]
    means = [(m + v) / (1 + v) for m in (-1.0, 1.0)]
    return sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
