"""(e) Policies against full CFG at the same steps: evaluations, wall time, distance of samples."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.algebra import Guide

MODEL, W, STEPS, N, REPEATS = "cifar10", 3.0, 20, 4, 2


@dataclass(frozen=True)
class Saving:
    """What a policy costs and changes.

    Attributes:
        nfe: Network evaluations a sample.
        seconds: Median wall time of a run of all samples.
        share: Median over paired runs of the wall time in units of full CFG's.
        cpu: The same of the processor time of this process, which others do not disturb.
        distance: Root mean square pixel difference to the samples of full CFG.
    """

    nfe: float
    seconds: float
    share: float
    cpu: float
    distance: float

    def __str__(self) -> str:
        return (
            f"NFE {self.nfe:5.1f}   {self.seconds:7.3f} s   {self.share:.3f} (CPU {self.cpu:.3f}) "
            f"of full CFG   RMSE {self.distance:.2e}"
        )


LOW = "cfg(1.2)"
"""Residual CFG has a scale near 1: far from it, it leaves the data."""


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
        "reuse()": fl.CFG(W) | fl.FeatureReuse(),
        "cache(low=1, high=1) | reuse()": fl.CFG(W) | cached | fl.FeatureReuse(),
        "oscillating()": fl.CFG(W) | fl.Oscillating(),
        "no guidance": fl.guide("none"),
        LOW: fl.guide(LOW),
        f"{LOW} | rcfg('onetime')": fl.guide(LOW) | fl.ResidualCFG("onetime"),
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
    cpu: dict[str, list[float]] = {name: [] for name in chosen}
    results = {}
    label = {"label": torch.arange(N) % 10}
    fl.sample(denoiser, label, guide=chosen["full CFG"], steps=2)  # warms up
    for _ in range(REPEATS):
        for name, guide in chosen.items():
            start, used = time.perf_counter(), time.process_time()
            results[name] = fl.sample(
                denoiser, label, guide=guide, steps=STEPS, sampler="ddim", record=False
            )
            results[name].x.sum().item()  # waits for a device
            times[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    found = {}
    for name, out in results.items():
        full = LOW if name.startswith(LOW) else "full CFG"
        found[name] = Saving(
            out.nfe.double().mean().item(),
            statistics.median(times[name]),
            _paired(times[name], times[full]),
            _paired(cpu[name], cpu[full]),
            _rmse(out.x, results[full].x),
        )
    return found


def _paired(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _rmse(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()
