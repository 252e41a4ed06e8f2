"""Claim of references through self-attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fairlead as fl
from fairlead.metrics import mean_interval
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above

N, SEED, STEPS = 60, 0, 16
SCALES = (0.0, 1.0, 3.0)


@claim(
    "with_reference",
    ids=("S066", "S122"),
    claim="Features of a reference in self-attention make a sample resemble it, the more the "
    "larger their own scale.",
    setting="cifar10, which was not trained with references, its null no tokens; references are "
    f"samples of the same class from other noise; nested over the reference at 0, 1 and 3 and the "
    f"class at 2, {STEPS} steps of DPM-Solver++(2M), {N} samples; resemblance is the cosine of a "
    "classifier's features to those of the own reference, less that to the next one of the class",
    expected="resemblance rises from 0 to 1 and from 1 to 3",
    seed=SEED,
    models=("cifar10",),
)
def resemblance() -> Finding:
    """Both rises clear of zero."""
    model, judge = fl.load("cifar10"), zoo.classifier("cifar10")
    labels = torch.arange(N) % 10

    def draw(d: fl.Denoiser, condition: dict[str, Tensor], guide: Any, seed: int) -> Tensor:
        out = fl.sample(
            d, condition, guide=guide, seed=seed, steps=STEPS, sampler="dpmpp_2m", record=False
        )
        return out.x

    shown = draw(model, {"label": labels}, "cfg(2)", SEED + 1)
    dressed = fl.with_reference(model, {"label": 10})
    condition = {"label": labels, "reference": dressed.read(shown.clamp(-1, 1))}

    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            return judge.features(x.clamp(-1, 1)).flatten(1)

    own = features(shown)
    other = own.roll(10, 0)  # of the same class
    near: dict[float, Tensor] = {}
    for w in SCALES:
        guide = fl.recipes.nested(["reference", "label"], [w, 2.0])
        x = features(draw(dressed, condition, guide, SEED))
        near[w] = F.cosine_similarity(x, own) - F.cosine_similarity(x, other)
    measured = {f"resemblance, {w:g}": mean_interval(v) for w, v in near.items()}
    checks = {
        "a reference is seen": above(mean_interval(near[1.0] - near[0.0])),
        "its scale makes it stronger": above(mean_interval(near[3.0] - near[1.0])),
    }
    return Finding(measured, checks, nfe=3 * STEPS)
