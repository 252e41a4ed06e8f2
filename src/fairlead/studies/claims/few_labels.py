"""Claims of the judge in closed form: few labels, and what it says about itself."""

from typing import Any

import torch

import fairlead as fl
from fairlead.energy import Classifier, ClosedFormJudge
from fairlead.metrics import judge_report
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, below, difference
from fairlead.training.data import digits

N = 300


@claim(
    "classifier_guidance-few_labels",
    ids=("XP1",),
    claim="Gaussian classes fitted in closed form on a few clean labels guide an unconditional "
    "model at every noise level without a network call; and a judge flatters what it has guided.",
    setting="shipped digits model, null condition, 16 steps of DPM-Solver++(2M), 300 samples; "
    "judges from 5 and 10 labelled images a class, scale 2 and 4; success by the shipped "
    "classifier, which did not guide",
    expected="independent success above 0.5 with 5 labels and above that with 10, at each scale; "
    "the guiding judge reports more than the independent one, for both; no backward pass",
    models=("digits",),
)
def few() -> Finding:
    """Success by the guiding and by the independent judge."""
    d = fl.load("digits")
    images = digits("train")
    x, y = images.batch(torch.arange(len(images)))
    wanted = torch.arange(N) % 10
    other = Classifier(zoo.classifier("digits"), wanted)
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    found = {}
    for count in (5, 10):
        rows = torch.cat([(y == c).nonzero().flatten()[:count] for c in range(10)])
        judge = ClosedFormJudge.fit(x[rows], y[rows], label=wanted)
        for w in (2.0, 4.0):
            out = fl.sample(
                d,
                {"label": torch.full((N,), 10)},
                guide=fl.ClassifierGuidance(judge, w),
                sampler="dpmpp_2m",
                steps=16,
                record=False,
            )
            report = judge_report(out.x.clamp(-1, 1), wanted, judge, {"independent": other})
            name = f"{count} labels, w = {w:g}"
            found[count, w] = report.independent["independent"]
            measured[name] = {
                "guiding": report.guiding,
                "independent": found[count, w],
                "gap": report.gaps["independent"],
            }
            checks[f"flatters itself, {name}"] = above(report.gaps["independent"])
            checks[f"no backward, {name}"] = out.report.backwards == 0
    for w in (2.0, 4.0):
        checks[f"success, w = {w:g}"] = above(found[5, w], 0.5)
        checks[f"more labels, w = {w:g}"] = below(difference(found[5, w], found[10, w]))
    return Finding(measured, checks, nfe=16)
