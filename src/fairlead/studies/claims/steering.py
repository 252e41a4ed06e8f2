"""Claims of Feynman-Kac steering."""

import torch

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.metrics import mean_interval
from fairlead.schedules import Level
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees

N = 8192
# mean of the steered samples by number of particles, in the entry's own experiment
PUBLISHED = {4: 0.641, 16: 0.863, 64: 0.916}


@claim(
    "steering",
    ids=("XC10",),
    claim="Particles drawn anew by intermediate rewards approach the density tilted by the reward.",
    setting="mixture of N(-1, 0.3) and N(1, 0.3), weights 0.6 and 0.4, reward x, l = 1, 100 "
    "ancestral steps, sigma log-spaced from 30 to 0.02 then 0, checks after steps 20, 40, 60, 80 "
    "and 99, potential difference, 8192 particles in sets of k; the chain's own tilted mean by "
    "importance weights of 16384 samples",
    expected="means 0.641, 0.863 and 0.916 for k = 4, 16 and 64, as far as the spread over the "
    "sets can tell; the error against the chain's tilted mean falls from k = 4 to 64 (a fixed "
    "tolerance of 0.05 failed at k = 64 with 64 sets, so intervals over the sets decide since)",
)
def rate() -> Finding:
    """Every mean agrees, and the error falls."""
    mixture = GaussianMixture([-1.0, 1.0], 0.3, [0.6, 0.4])
    sigmas = [30 * (0.02 / 30) ** (i / 99) for i in range(100)]
    levels = tuple(Level(s, 1.0, s) for s in [*sigmas, 0.0])
    denoiser = mixture.denoiser(exact.OnLevels(levels=levels))
    options = {"steps": 100, "dtype": torch.float64, "record": False}

    def draw(sampler: str, n: int, size: int) -> torch.Tensor:
        condition = {"label": torch.zeros(n, dtype=torch.long), "set": torch.arange(n) // size}
        rewards = {"reward": lambda x: x[:, 0]}
        return fl.sample(denoiser, condition, sampler=sampler, rewards=rewards, **options).x[:, 0]  # type: ignore[arg-type]

    plain = draw("ddpm", 16384, 1)
    target = ((plain * plain.exp()).sum() / plain.exp().sum()).item()
    measured: dict[str, object] = {"unsteered": plain.mean().item(), "tilted": target}
    checks: dict[str, bool | None] = {}
    errors = [abs(plain.mean().item() - target)]
    for size, published in PUBLISHED.items():
        sets = draw("steering(l=1.0, potential='difference')", N, size).reshape(-1, size).mean(1)
        mean = measured[f"k = {size}"] = mean_interval(sets)
        checks[f"k = {size}"] = agrees(mean, published, 0.02)
        errors.append(abs(mean.value - target))
    checks["the error falls"] = errors[-1] < errors[1] < errors[0]
    return Finding(measured, checks, nfe=100)
