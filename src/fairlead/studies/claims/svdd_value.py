"""What soft value-based decoding comes to with many proposals: rate and limit."""

import math
from itertools import pairwise

import torch
from torch import Tensor

import fairlead as fl
from fairlead.energy import Function
from fairlead.exact import GaussianMixture
from fairlead.schedules import Level
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims.svdd import _tilted_mean

N, LAM, STEPS, VARIANCE = 2500, 0.5, 60, 0.3
PROPOSALS = (1, 2, 4, 8, 16)
MIXTURE = GaussianMixture([-1.0, 1.0], VARIANCE, [0.6, 0.4])
SCHEDULE = fl.schedules.EDM(0.02, 30.0)


def reward(x: Tensor) -> Tensor:
    """`-(x - 1)^2 / 4` of `(B, 1)`."""
    return -((x[:, 0] - 1) ** 2) / 4


def soft_value(x: Tensor, level: Level) -> Tensor:
    """`lam log E[exp(r(x_0) / lam) | x_t]` of `(B, 1)`: each part of the posterior in turn."""
    noise = level.sigma**2
    k, c = VARIANCE / (VARIANCE + noise), VARIANCE * noise / (VARIANCE + noise)
    means = x.new_tensor([-1.0, 1.0])
    mu = means + k * (x - means)
    parts = x.new_tensor([0.6, 0.4]).log() - (x - means) ** 2 / (2 * (VARIANCE + noise))
    # E exp(-(x_0 - 1)^2 / 2) of a normal
    inner = -((mu - 1) ** 2) / (2 * (1 + c)) - math.log(1 + c) / 2
    return LAM * (parts.log_softmax(1) + inner).logsumexp(1)


def limit(value: str) -> float:
    """The mean with infinitely many proposals, by the chain's law on a grid."""
    levels = SCHEDULE.grid(STEPS)
    denoiser = MIXTURE.denoiser(SCHEDULE)
    x = torch.linspace(-6, 6, 1501, dtype=torch.float64) * levels[0].sigma
    p = (-((x / levels[0].sigma) ** 2) / 2).softmax(0)
    for s, t in pairwise(levels):
        clean = denoiser(x[:, None], s)[:, 0]
        if t.sigma == 0:
            return float(p @ clean)
        share = (t.sigma / s.sigma) ** 2
        spread = t.sigma**2 * (1 - share)
        y = torch.linspace(-6, 6, 1501, dtype=torch.float64) * math.sqrt(t.sigma**2 + 2)
        if value == "given":
            tilt = soft_value(y[:, None], t) / LAM
        else:
            tilt = reward(denoiser(y[:, None], t)) / LAM
        centre = clean + share * (x - clean)
        kernel = (-((y - centre[:, None]) ** 2) / (2 * spread) + tilt).softmax(1)
        x, p = y, p @ kernel
    raise AssertionError("levels end at sigma = 0")


@claim(
    "svdd-value",
    ids=("S013",),
    claim="More proposals bring the samples to a limit at a rate of 1/M. With the soft value "
    "itself that is the target, up to the steps; with the reward of the clean estimate it lies "
    "beyond it.",
    setting="as `svdd`, 2500 samples; the soft value in closed form; the limits by the law of the "
    "chain on a grid of 1501 points",
    expected="for both values: the distance of the mean to its limit falls with M to less than an "
    "eighth at M = 16, allowing three standard errors; the limit of the soft value is nearer to "
    "the target than that of the estimate, and the estimate's is beyond the target",
)
def convergence() -> Finding:
    """Distances to both limits."""
    target = _tilted_mean()
    denoiser = MIXTURE.denoiser(SCHEDULE)
    given = Function(lambda x, level: -soft_value(x, level), "value", noisy=True)
    measured: dict[str, object] = {"target": target}
    checks = {}
    limits = {}
    for value, name in (("given", "value"), ("mean", "reward")):
        limits[value] = limit(value)
        means, errors = [], []
        for m in PROPOSALS:
            x = fl.sample(
                denoiser,
                sampler=f"svdd({name!r}, m={m}, lam={LAM}, value={value!r})",
                n=N,
                rewards={"reward": reward},
                energies={"value": given},
                steps=STEPS,
                dtype=torch.float64,
                record=False,
            ).x
            means.append(x.mean().item())
            errors.append(x.std().item() / N**0.5)
        left = [abs(v - limits[value]) for v in means]
        measured[value] = {
            "limit": limits[value],
            **{f"M = {m}": v for m, v in zip(PROPOSALS, means, strict=True)},
            "standard error": errors[-1],
        }
        falls = [b < a + 3 * e for (a, b), e in zip(pairwise(left), errors[1:], strict=True)]
        checks[f"falls with M, {value}"] = all(falls)
        checks[f"an eighth at M = 16, {value}"] = left[-1] < left[0] / 8 + 3 * errors[-1]
    near = {k: abs(v - target) for k, v in limits.items()}
    checks["the soft value's limit is nearer"] = near["given"] < near["mean"]
    checks["the estimate's limit is beyond the target"] = limits["mean"] > target
    return Finding(measured, checks, nfe=STEPS * 16)
