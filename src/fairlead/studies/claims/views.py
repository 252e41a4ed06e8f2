"""Claims of MultiDiffusion: canvases without seams, and regions made over plain colours."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead import recipes
from fairlead.metrics import Estimate, bootstrap, mean_interval
from fairlead.models import zoo
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, below

SIDE = 32


def steps_between(x: Tensor) -> Tensor:
    """Mean square of the step from each column to the next, `(B, W - 1)`."""
    return x.diff(dim=3).square().mean((1, 2))


def seam(x: Tensor, at: int = SIDE) -> Estimate:
    """Step across a border over the mean step elsewhere."""
    found = steps_between(x)
    across, elsewhere = found[:, at - 1], (found.sum(1) - found[:, at - 1]) / (found.shape[1] - 1)
    both = torch.stack([across, elsewhere], 1)
    return bootstrap(lambda y: y[:, 0].mean() / y[:, 1].mean(), both, resamples=500)


def judged(x: Tensor, label: Tensor) -> Tensor:
    """Whether the classifier sees the class in each 32x32 picture, `(B,)`."""
    judge = zoo.classifier("cifar10")
    with torch.no_grad():
        found = judge.outputs(judge.features(x.clamp(-1, 1))).argmax(1)
    right: Tensor = found == label
    return right.double()


@claim(
    "views",
    ids=("XM3",),
    claim="Averaging the predictions of overlapping windows makes a panorama without seams.",
    setting="cifar10, a canvas of 32x64 from a network of 32x32, cfg(2), 16 steps of "
    "DPM-Solver++(2M), 40 samples, 4 of each class, windows 8 apart (5 windows) and 32 apart (two "
    "tiles that do not overlap), from the same noise; step across the middle over the mean step "
    "between columns elsewhere",
    expected="tiles: at least 1.5; overlapping windows: at most 1.25; the middle 32x32 is seen as "
    "its class more often than where tiles meet",
    models=("cifar10",),
)
def panorama() -> Finding:
    """Each bound clear of sampling error."""
    model, labels = fl.load("cifar10"), torch.arange(40) % 10
    ratios: dict[str, Estimate] = {}
    right: dict[str, Tensor] = {}
    for name, stride in (("windows", 8), ("tiles", SIDE)):
        wide = fl.ViewsDenoiser(model, (SIDE, 2 * SIDE), stride)
        options = {"guide": "cfg(2)", "sampler": "dpmpp_2m", "steps": 16, "record": False}
        x = fl.sample(wide, {"label": labels}, **options).x  # type: ignore[arg-type]
        ratios[name] = seam(x)
        right[name] = judged(x[..., 16:48], labels)
    measured = {f"step across the middle, {k}": v for k, v in ratios.items()}
    measured |= {f"class seen in the middle, {k}": mean_interval(v) for k, v in right.items()}
    checks: dict[str, Check] = {
        "tiles have a seam": above(ratios["tiles"], 1.5),
        "windows have none": below(ratios["windows"], 1.25),
        "the middle is of one piece": above(mean_interval(right["windows"] - right["tiles"])),
    }
    return Finding(measured, checks, nfe=32)


@claim(
    "foreground",
    ids=("XM3",),
    claim="Showing a region plain colours around it in the first steps makes its object inside its "
    "mask.",
    setting="cifar10, 32x32, background class ship, foreground class automobile in the middle "
    "20x20, cfg(2) with regions, 20 steps of DDIM, 100 samples, without and with bootstrap=0.4; "
    "the classifier sees the inside of the mask over mid-grey",
    expected="with it the inside is seen as an automobile more often than without",
    models=("cifar10",),
)
def inside() -> Finding:
    """The difference clear of zero."""
    model = fl.load("cifar10")
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 6:26, 6:26] = 1
    label = torch.full((100,), 1)
    right: dict[float, Tensor] = {}
    for share in (0.0, 0.4):
        x = fl.sample(
            model,
            {"label": torch.full((100,), 8)},
            guide=recipes.regions("label", 2.0, ["object"], bootstrap=share),
            states={"object": {"label": label}},
            masks={"object": mask},
            sampler="ddim",
            steps=20,
            record=False,
        ).x
        right[share] = judged(x * mask, label)
    measured = {
        "seen inside, without": mean_interval(right[0.0]),
        "seen inside, with": mean_interval(right[0.4]),
    }
    checks: dict[str, Check] = {
        "more often with colours": above(mean_interval(right[0.4] - right[0.0])),
    }
    return Finding(measured, checks, nfe=92)
