"""(e) Policies against full CFG at the same steps: evaluations, wall time, distance of samples."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.algebra import Guide

MODEL, W, STEPS, N, REPEATS = "cifar10", 3.0, 20, 4, 3


@dataclass(frozen=True)
class Saving:
    """What a policy costs and changes.

    Attributes:
        nfe: Network evaluations a sample.
        seconds: Median time of a run of all samples.
        share: Median over paired runs of the time in units of full CFG's.
        distance: Root mean square pixel difference to the samples of full CFG.
    """

    nfe: float
    seconds: float
    share: float
    distance: float

    def __str__(self) -> str:
        return (
            f"NFE {self.nfe:5.1f}   {self.seconds:7.3f} s   {self.share:.3f} of full CFG   "
            f"RMSE {self.distance:.2e}"
        )


def guides(denoiser: fl.Denoiser) -> dict[str, Guide]:
    """Full CFG first, then each policy on it, and no guidance."""
    fitted = fl.fit_linear(
        denoiser, {"label": torch.arange(20) % 10}, guide=fl.CFG(W), steps=STEPS, seed=1
    )
    cached = fl.Cache(low=1.0, high=1.0)
    found: dict[str, Guide] = {
        "full CFG": fl.CFG(W),
        "adaptive(guard=0.45)": fl.CFG(W) | fl.AdaptiveGuidance(guard=0.45),
        "linear, fitted on 20 samples": fl.CFG(W) | fitted,
        "cache(low=1, high=1)": fl.CFG(W) | cached,
        "cache()": fl.CFG(W) | fl.Cache(),
        "rcfg('onetime')": fl.CFG(W) | fl.ResidualCFG("onetime"),
        "reuse()": fl.CFG(W) | fl.FeatureReuse(),
        "cache(low=1, high=1) | reuse()": fl.CFG(W) | cached | fl.FeatureReuse(),
        "oscillating()": fl.CFG(W) | fl.Oscillating(),
        "no guidance": fl.guide("none"),
    }
    return found


def rows(device: str = "cpu") -> dict[str, Saving]:
    """Every policy on the same noise, all in turn, a few times over."""
    denoiser = fl.load(MODEL)
    if device != "cpu":
        denoiser.network.to(device)
        denoiser.device = torch.device(device)
    chosen = guides(denoiser)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    results = {}
    label = {"label": torch.arange(N) % 10}
    fl.sample(denoiser, label, guide=chosen["full CFG"], steps=2)  # warms up
    for _ in range(REPEATS):
        for name, guide in chosen.items():
            start = time.perf_counter()
            results[name] = fl.sample(
                denoiser, label, guide=guide, steps=STEPS, sampler="ddim", record=False
            )
            results[name].x.sum().item()  # waits for a device
            times[name].append(time.perf_counter() - start)
    whole, base = results["full CFG"].x, times["full CFG"]
    return {
        name: Saving(
            out.nfe.double().mean().item(),
            statistics.median(times[name]),
            statistics.median(a / b for a, b in zip(times[name], base, strict=True)),
            _rmse(out.x, whole),
        )
        for name, out in results.items()
    }


def _rmse(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()
