"""Claims of streaming: Stream Batch and the similarity filter."""

import math
import statistics
import time

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.schedules import Level
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check

SIGMAS = (2.0, 1.0, 0.5, 0.25)


def scene(n: int, motion: float) -> list[Tensor]:
    """Digits-sized frames of a fixed image with independent noise of a standard deviation."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 8, 8, generator=generator) * 2 - 1
    return [image + motion * torch.randn(1, 8, 8, generator=generator) for _ in range(n)]


GUIDE = "cfg(1.2) | rcfg()"


def levels(d: fl.Denoiser) -> list[Level]:
    """The four levels."""
    return [d.schedule.level_at(-2 * math.log(s)) for s in SIGMAS]


def alone(d: fl.Denoiser, frame: Tensor, noises: Tensor) -> Tensor:
    """One frame by four consistency steps, a network call each, with the stream's noise."""
    run = fl.Run(0, [0], 4, record=False, reference=frame[None])
    states = {"cond": fl.Condition({"label": [3]})}
    model, walk = GuidedModel(fl.guide(GUIDE), Evaluator(d, states), run), levels(d)
    x = walk[0].alpha * frame[None] + walk[0].sigma * noises[:1]
    for i, level in enumerate(walk):
        model.begin(level)
        with torch.no_grad():
            x = model(x, level).denoise
        if i < len(walk) - 1:
            x = walk[i + 1].alpha * x + walk[i + 1].sigma * noises[i + 1 : i + 2]
    return x[0]


@claim(
    "stream",
    ids=("S064",),
    claim="One batch that holds a frame at each noise level gives the frames that denoising one "
    "after the other gives, about 1.5 times as fast.",
    setting="digits, residual CFG, four levels, 40 frames, median of 5 runs in turn; against four "
    "calls of one frame each",
    expected="largest difference below 1e-4 (float32 in batches of 4 and of 1); at least 1.5 times "
    "as fast",
    models=("digits",),
)
def batch() -> Finding:
    """Same frames, and the ratio of the median times."""
    d, frames = fl.load("digits"), scene(43, 0.3)
    noises = fl.Run(0, range(4)).normal(torch.empty(4, 1, 8, 8), "stream")

    def together() -> list[Tensor]:
        running = fl.Stream(d, {"label": 3}, guide=GUIDE, times=levels(d))
        found = [running.push(f) for f in frames]
        return [f for f in found if f is not None]

    def apart() -> list[Tensor]:
        return [alone(d, f, noises) for f in frames[:40]]

    pairs, times = (together(), apart()), ([], [])  # type: ignore[var-annotated]
    for _ in range(5):
        for call, kept in zip((together, apart), times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    difference = max(float((a - b).abs().max()) for a, b in zip(*pairs, strict=True))
    faster = statistics.median(times[1]) / statistics.median(times[0])
    checks: dict[str, Check] = {"same frames": difference < 1e-4, "1.5 times": faster >= 1.5}
    return Finding({"largest difference": difference, "times as fast": faster}, checks, 4.0)


@claim(
    "similarity",
    ids=("S064",),
    claim="Leaving out frames by similarity, at random, saves about half of the work where little "
    "moves, and none where much does.",
    setting="digits-sized scenes of 400 frames, a fixed image with noise of 0.005 and of 0.5, "
    "eta = 0.98, at most 10 skips in a row",
    expected="at least 2 times fewer network calls in the still scene (the paper's power falls 2.0 "
    "and 2.4 times), no frame skipped in the moving one",
    models=("digits",),
)
def similarity() -> Finding:
    """Counted, not timed."""
    d = fl.load("digits")
    calls = {}
    for name, motion in (("still", 0.005), ("moving", 0.5)):
        running = fl.Stream(
            d, {"label": 3}, guide=GUIDE, times=levels(d), similarity=fl.SimilarityFilter()
        )
        for frame in scene(400, motion):
            running.push(frame)
        calls[name] = running.report.calls
    saved = 400 / calls["still"]
    checks: dict[str, Check] = {"still": saved >= 2, "moving": calls["moving"] == 400}
    return Finding({"calls": calls, "times fewer, still": saved}, checks, 4.0)
