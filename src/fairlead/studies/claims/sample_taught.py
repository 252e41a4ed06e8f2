"""Claim of a teacher that lends its self-attention."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.resample import along, resize
from fairlead.metrics import mean_interval
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above

N, SEED, STEPS = 60, 0, 16


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the brightness of two batches on an 8x8 grid, `(B,)`."""
    grey = (along(x, lambda n: resize(n, 8)).mean(1).flatten(1) for x in (a, b))
    a, b = (x - x.mean(1, keepdim=True) for x in grey)
    return torch.nn.functional.cosine_similarity(a, b, dim=1)


@claim(
    "sample_taught",
    ids=("S065",),
    claim="A teacher that lends its self-attention in the first third of a run brings the layout "
    "of the sample closer to its own, and leaves its content.",
    setting="cifar10, students of each class beside teachers of the class five further, "
    f"{STEPS} steps of DDIM at w = 2, end 0 (both share the noise) and 0.3, {N} pairs; layout is "
    "the brightness on an 8x8 grid, content the class that a classifier finds",
    expected="with a teacher the correlation of the student's layout with the teacher's rises, "
    "and class accuracy falls by less than 0.1",
    seed=SEED,
    models=("cifar10",),
)
def layout() -> Finding:
    """The rise clear of zero, the bound on accuracy clear of sampling error."""
    model, judge = fl.load("cifar10"), zoo.classifier("cifar10")
    labels = torch.arange(N) % 10
    near: dict[float, Tensor] = {}
    right: dict[float, Tensor] = {}
    for end in (0.0, 0.3):
        out = fl.sample_taught(
            model, {"label": labels}, {"label": (labels + 5) % 10}, guide="cfg(2)", steps=STEPS,
            end=end, n=N, seed=SEED,
        )  # fmt: skip
        near[end] = alike(out.x, out.teacher)
        with torch.no_grad():
            found = judge.outputs(judge.features(out.x.clamp(-1, 1))).argmax(1)
        right[end] = (found == labels).double()
    closer, lost = mean_interval(near[0.3] - near[0.0]), mean_interval(right[0.3] - right[0.0])
    measured = {
        "correlation, alone": mean_interval(near[0.0]),
        "correlation, taught": mean_interval(near[0.3]),
        "accuracy, alone": mean_interval(right[0.0]),
        "accuracy, taught": mean_interval(right[0.3]),
    }
    checks = {"layout comes closer": above(closer), "accuracy stays": above(lost, -0.1)}
    return Finding(measured, checks, nfe=4 * STEPS)
