"""Claims of re-dilation and noise-damped guidance."""

import torch
import torch.nn.functional as F
from torch import Tensor

import fairlead as fl
from fairlead.metrics import mean_interval
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below

N, STEPS, LAYERS = 20, 8, "'down.2.**,mid.**,up.0.**'"


def large(guide: str) -> Tensor:
    """Images of twice the side that the model was trained on, two a class."""
    denoiser = fl.load("cifar10")
    denoiser.shape = None
    labels = torch.arange(N) % 10
    out = fl.sample(
        denoiser,
        {"label": labels},
        guide=guide,
        sampler="dpmpp_2m",
        steps=STEPS,
        shape=(N, 3, 64, 64),
        record=False,
    )
    return out.x.clamp(-1, 1)


def roughness(x: Tensor) -> Tensor:
    """Root mean square of what is lost at half the size, `(N,)`."""
    return (x - F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)).square().mean((1, 2, 3)).sqrt()


@claim(
    "redilate",
    ids=("S020",),
    claim="Beyond the training resolution, dilated convolutions keep one object instead of "
    "several, and a less dilated base in noise-damped guidance takes away the noise that they add.",
    setting=f"cifar10 at 64x64, twice the training side, {N} images, {STEPS} steps of DPM-Solver++ "
    "(2M), w = 2, the convolutions of the coarsest level dilated by 2 in the first 60 % of the "
    "steps; the probability of the class at half the size, and the energy lost at half the size",
    expected="the probability is higher with dilation than without; the lost energy is lower with "
    "noise-damped guidance than with dilation alone, on the same noise",
    models=("cifar10",),
)
def twice_the_side() -> Finding:
    """Both differences exclude 0."""
    dilation = f"redilate(2.0, layers={LAYERS})"
    guides = {
        "plain": "cfg(2)",
        "dilated": f"cfg(2) | {dilation}",
        "damped": f"cfg(2) + noise_damped() | {dilation}",
    }
    images = {name: large(guide) for name, guide in guides.items()}
    judge, rows = zoo.classifier("cifar10"), torch.arange(N)
    with torch.no_grad():
        confidence = {
            name: judge.outputs(judge.features(F.avg_pool2d(x, 2))).softmax(1)[rows, rows % 10]
            for name, x in images.items()
        }
    measured = {
        name: {
            "probability of the class": mean_interval(confidence[name]),
            "lost at half the size": mean_interval(roughness(x)),
        }
        for name, x in images.items()
    }
    gain = mean_interval(confidence["dilated"] - confidence["plain"])
    noise = mean_interval(roughness(images["damped"]) - roughness(images["dilated"]))
    measured["differences"] = {"probability": gain, "noise": noise}
    return Finding(measured, {"structure": above(gain), "noise": below(noise)}, nfe=22)


@claim(
    "noise_damped",
    ids=("S020",),
    claim="With the null of a better denoiser as base, errors of the network that gives the "
    "direction do not enter the base.",
    setting="a Gaussian pair, N(0, 2) and N(0, 1) for the class, whose predictions are exact in "
    "one mode and have an error of deviation 0.3, the same in both branches, in the other; w = 3, "
    "one step at sigma = 1, 20000 samples: root mean square distance to exact CFG",
    expected="0.3 for CFG in the noisy mode, 0 with the exact null as base",
)
def base_error() -> Finding:
    """The error of the base leaves, that of the direction cancels."""
    pair, level = fl.exact.GaussianPair(), fl.schedules.Level(1.0, 1.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    x, error = torch.randn(2, 20_000, 1, dtype=torch.float64, generator=generator)
    c, u = pair.x0(x, level, 0), pair.x0(x, level)
    noisy = {"cond": c + 0.3 * error, "null": u + 0.3 * error, "damped": u}
    truth = fl.combine("cfg(3)", {"cond": c, "null": u})
    apart = {
        guide: (fl.combine(guide, noisy) - truth).square().mean().sqrt().item()
        for guide in ("cfg(3)", "cfg(3) + noise_damped()")
    }
    plain, damped = apart.values()
    checks = {"cfg": abs(plain - 0.3) < 0.01, "damped": damped < 1e-9}
    return Finding(apart, checks, nfe=3)
