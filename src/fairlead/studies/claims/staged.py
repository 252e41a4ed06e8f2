"""Claims of sampling in stages of growing size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.resample import along, resize
from fairlead.metrics import Estimate, mean_interval
from fairlead.models import zoo
from fairlead.stages import Stage, frecas, nearest, rectified_hr
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below

SEED = 0


def fine(x: Tensor) -> Tensor:
    """Mean square of what half the size cannot show, `(B,)`."""
    low = along(x, lambda n: resize(n // 2, n) @ resize(n, n // 2))
    return (x - low).square().flatten(1).mean(1)


def energy(x: Tensor) -> Tensor:
    """Mean square, `(B,)`."""
    return x.square().flatten(1).mean(1)


def draw(stages: Sequence[Stage], n: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Samples of all classes in turn, and the energy of each step's estimate, `(steps, n)`."""
    model = fl.load("cifar10")
    along_the_way: list[Tensor] = []
    out = fl.sample_stages(
        model,
        {"label": torch.arange(n) % 10},
        stages=stages,
        n=n,
        seed=SEED,
        sampler="dpmpp_2m",
        record=False,
        callback=lambda step: along_the_way.append(energy(step.denoised)),
        **options,
    )
    return out.x, torch.stack(along_the_way)


@claim(
    "rectified_hr",
    ids=("S107",),
    claim="Larger sizes lose energy, and a scale that rises with the size restores it and the "
    "detail.",
    setting="cifar10, trained at 32x32 and sampled at 64x64 in two stages, 16 steps of "
    "DPM-Solver++(2M), refresh at step 10, 24 samples; energy is the mean square of the clean "
    "estimate, over the last 6 steps; detail what 32x32 cannot show; w = 2 throughout, and 2 to 8",
    expected="energy at 64x64 with w = 2 below that of the same noise at 32x32; with w rising to 8 "
    "more energy and more detail than with w = 2",
    seed=SEED,
    models=("cifar10",),
)
def larger() -> Finding:
    """Each change within samples clear of zero."""
    model = fl.load("cifar10")
    stages = {
        w: rectified_hr(
            model.schedule, ((32, 32), (64, 64)), w=(2.0, w), steps=16, refresh=10, multiple=1
        )
        for w in (2.0, 8.0)
    }
    small = [Stage(s.guide, s.levels, refresh=False) for s in stages[2.0]]
    _, e32 = draw(small, 24)
    runs = {w: draw(s, 24) for w, s in stages.items()}
    late = {w: e[10:].mean(0) for w, (_, e) in runs.items()}
    lost = mean_interval(late[2.0] - e32[10:].mean(0))
    gained = mean_interval(late[8.0] - late[2.0])
    sharper = mean_interval(fine(runs[8.0][0]) - fine(runs[2.0][0]))
    measured = {
        "energy, 32x32": mean_interval(e32[10:].mean(0)),
        "energy, 64x64, w = 2": mean_interval(late[2.0]),
        "energy, 64x64, w to 8": mean_interval(late[8.0]),
        "detail, w = 2": mean_interval(fine(runs[2.0][0])),
        "detail, w to 8": mean_interval(fine(runs[8.0][0])),
    }
    checks = {
        "a larger size loses energy": below(lost),
        "a larger scale restores energy": above(gained),
        "a larger scale restores detail": above(sharper),
    }
    return Finding(measured, checks, nfe=32)


@claim(
    "frecas",
    ids=("S048",),
    claim="A larger scale for the new frequencies sharpens them and leaves the low ones as they "
    "are.",
    setting="cifar10, 16x16 and then 32x32, 10 and 6 steps of DPM-Solver++(2M), first stage to "
    "sigma 0.5, w = 2, high scale 2 and 8, 100 samples",
    expected="with 8 more power in what 16x16 cannot show; the mean of each image changes by less "
    "than 0.05, and class accuracy falls by less than 0.1",
    seed=SEED,
    models=("cifar10",),
)
def cascaded() -> Finding:
    """The gain clear of zero, both bounds clear of sampling error."""
    model, judge = fl.load("cifar10"), zoo.classifier("cifar10")
    labels = torch.arange(100) % 10
    images: dict[float, Tensor] = {}
    right: dict[float, Tensor] = {}
    for high in (2.0, 8.0):
        stages = frecas(model.schedule, [(16, 16), (32, 32)], (10, 6), (0.5, 0.0), w=2.0, high=high)
        x, _ = draw(stages, 100, resize=lambda y, size: nearest(y.clamp(-1, 1), size))
        images[high] = x
        with torch.no_grad():
            found = judge.outputs(judge.features(x.clamp(-1, 1))).argmax(1)
        right[high] = (found == labels).double()
    sharper = mean_interval(fine(images[8.0]) - fine(images[2.0]))
    moved = (images[8.0] - images[2.0]).mean((2, 3)).abs().mean(1)
    lost = mean_interval(right[8.0] - right[2.0])
    measured: dict[str, Estimate] = {
        "detail, high 2": mean_interval(fine(images[2.0])),
        "detail, high 8": mean_interval(fine(images[8.0])),
        "change of mean colour": mean_interval(moved),
        "accuracy, high 2": mean_interval(right[2.0]),
        "accuracy, high 8": mean_interval(right[8.0]),
    }
    checks = {
        "detail is sharpened": above(sharper),
        "mean colour stays": below(mean_interval(moved), 0.05),
        "accuracy stays": above(lost, -0.1),
    }
    return Finding(measured, checks, nfe=32)
