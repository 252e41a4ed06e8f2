"""Claims of inpainting by replacement."""

import math

import torch

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.metrics import mean_interval
from fairlead.schedules import Level
from fairlead.studies.claims._harness import Finding, claim

REFERENCE = {1: 0.664, 5: 0.758, 10: 0.779}
"""Share of `x2 > 0` by how often a stretch is walked, from an independent computation."""

TRUTH = 0.8


def chain(steps: int = 50) -> list[Level]:
    """Levels of a chain with beta from 0.002 to 0.25, noisiest first, then the clean one."""
    kept = (1 - torch.linspace(0.002, 0.25, steps, dtype=torch.float64)).cumprod(0)
    times = torch.linspace(1, 0, steps + 1).tolist()
    noisy = [
        Level(t, a**0.5, (1 - a) ** 0.5) for t, a in zip(times, kept.flip(0).tolist(), strict=False)
    ]
    return [*noisy, Level(0.0, 1.0, 0.0)]


@claim(
    "repaint",
    ids=("XI8", "S056"),
    claim="Replacing the known part at every level leaves the rest out of harmony with it; walking "
    "stretches of levels again mends that.",
    setting="four modes at (+-1, +-1) of standard deviation 0.2, those with equal signs of "
    "weight 0.4 each, the others 0.1; x1 = 1 known; 50 levels, stretches of 10, walked "
    "1, 5 and 10 times; 1000 samples each",
    expected="the share of x2 > 0 is 0.664, 0.758 and 0.779 within 0.04; its KL divergence to the "
    "true 0.8 falls from 1 to 5 times and is below a third of the first at 10; the known part is "
    "met exactly",
)
def harmony() -> Finding:
    """The shares agree with an independent computation, and come nearer to the truth."""
    means = [[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]
    mixture = GaussianMixture(means, 0.04, [0.4, 0.4, 0.1, 0.1])
    measured: dict[str, object] = {}
    checks: dict[str, bool] = {}
    divergence, cost = {}, 0.0
    for times, published in REFERENCE.items():
        out = fl.sample(
            mixture.denoiser(fl.schedules.VP()),
            sampler=f"repaint(times={times}, jump=10)",
            levels=chain(),
            n=1000,
            reference=torch.tensor([[1.0, 0.0]]),
            masks={"known": [1, 0]},
            dtype=torch.float64,
            record=False,
        )
        share = mean_interval((out.x[:, 1] > 0).double())
        p = share.value
        divergence[times] = TRUTH * math.log(TRUTH / p) + 0.2 * math.log(0.2 / (1 - p))
        measured |= {f"share, {times} times": share, f"KL, {times} times": divergence[times]}
        checks[f"share, {times} times"] = abs(p - published) < 0.04
        checks[f"known part, {times} times"] = bool((out.x[:, 0] == 1).all())
        cost = float(out.nfe[0])
    checks["walking again mends"] = divergence[5] < divergence[1] > 3 * divergence[10]
    return Finding(measured, checks, nfe=cost)
