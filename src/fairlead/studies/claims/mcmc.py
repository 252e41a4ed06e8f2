"""Claims of annealed Markov chains on composed densities."""

import torch

import fairlead as fl
from fairlead.exact import GaussianPair, TiltedDensity, sliced_wasserstein, t1_levels
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim

# end variance at w = 3 by Langevin steps a level, with an Euler step of the SDE between levels
PUBLISHED = {0: 0.389, 1: 0.430, 5: 0.472, 20: 0.491}


@claim(
    "mcmc",
    ids=("S045",),
    claim="Chains at every noise level make composed scores sample the composed density, which "
    "reverse diffusion alone misses.",
    setting="T1 at w = 3 with 1500 levels and ULA steps of h = q / 2, exactly computed; and a "
    "mixture of five components in 2-D, class 0, w = 3, 100 log-spaced levels, 3000 samples: "
    "sliced Wasserstein distance to the tilted density without chains and with 10 steps of ula "
    "(h = q / 2) and mala (h = q) a level",
    expected="variances 0.389, 0.430, 0.472 and 0.491 for 0, 1, 5 and 20 steps, within 0.01 (the "
    "sampler between the levels is ancestral here, Euler's there); both chains lie nearer to the "
    "tilted density than none (step sizes chosen after an earlier run)",
)
def composed() -> Finding:
    """The variances agree, and both chains come nearer."""
    pair, levels = GaussianPair(), t1_levels()
    measured: dict[str, object] = {}
    checks: dict[str, bool] = {}
    for steps, published in PUBLISHED.items():
        text = f"mcmc('ula', steps={steps}, h=0.5)"
        variance = exact.end_variance(pair, text, "cfg(3)", levels, 402.0, draws=steps + 1)
        measured[f"T1, {steps} steps"] = variance
        checks[f"T1, {steps} steps"] = abs(variance - published) < 0.01
    mixture = exact.overlapping()
    truth = TiltedDensity(mixture, 0, 3.0).sample(20_000, torch.Generator().manual_seed(5))
    schedule = fl.schedules.EDM(sigma_min=0.02, sigma_max=20.0)
    distances = {}
    for text in ("mcmc(steps=0)", "mcmc('ula', steps=10, h=0.5)", "mcmc('mala', steps=10, h=1.0)"):
        out = exact.sample(
            mixture, schedule, "cfg(3)", 100, n=3000, sampler=text, spacing="exponential"
        )
        distances[text] = sliced_wasserstein(out.x, truth)
        measured[text] = distances[text]
    none, *chains = map(float, distances.values())
    checks["both chains come nearer"] = all(c < none for c in chains)
    return Finding(measured, checks, nfe=2 * 100 * 11)
