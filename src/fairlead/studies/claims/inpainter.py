"""Claims of networks that are shown what is known of an image."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import fairlead as fl
from fairlead.metrics import mean_interval
from fairlead.models import zoo
from fairlead.models.inpainting import inpainter
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import above, below
from fairlead.training import Recipe, train_inpainter
from fairlead.training.data import digits

N = 299
STEPS = 400
SAMPLER = "repaint(times=1, place='estimate', sampler='heun')"


def tuned() -> fl.Denoiser:
    """The shipped model of digits, fine-tuned on erased rectangles."""
    filler = inpainter(fl.load("digits"))
    recipe = Recipe(
        minutes=math.inf,
        max_steps=STEPS,
        batch=64,
        lr=1e-3,
        warmup=20,
        ema=0.98,
        p_mean=-0.8,
        p_std=1.4,
        bf16=False,
    )
    network = filler.network
    with TemporaryDirectory() as folder:
        train_inpainter(network, digits("train"), recipe, Path(folder), sides=(0.4, 1.0))  # type: ignore[arg-type]
    network.requires_grad_(False)  # type: ignore[attr-defined]
    return filler


@claim(
    "inpainter",
    ids=("S056",),
    claim="A model fine-tuned to see the known part of an image fills in the rest better than a "
    "model that is only corrected to agree with it.",
    setting=f"shipped digits model, {STEPS} fine-tuning steps of batch 64 with random rectangles "
    f"erased; right half of {N} test images erased, no label, 16 Heun steps, the clean estimate "
    "overwritten where the image is known, for the fine-tuned model and for the original; compared "
    "image by image (as if the images were others, which was tried first, the class is undecided)",
    expected="fine-tuned, the squared error of erased pixels is lower, and the share of samples "
    "that the shipped classifier gives the true class higher, by intervals",
    models=("digits", "digits-classifier"),
)
def filled_in() -> Finding:
    """Error and class of what is filled in."""
    test = digits("test")
    x0, label = test.batch(torch.arange(N))
    mask = (torch.arange(8) < 4).float().expand(N, 1, 8, 8)
    null = torch.full((N,), len(test.classes))
    judge = zoo.classifier("digits")
    found: dict[str, object] = {}

    def drawn(d: fl.Denoiser, **given: Tensor) -> Tensor:
        return fl.sample(
            d, {"label": null, **given}, sampler=SAMPLER, steps=16, n=N, reference=x0,
            masks={"known": mask},
        ).x  # fmt: skip

    runs = {
        "overwritten": drawn(fl.load("digits")),
        "fine-tuned": drawn(tuned(), known=x0, mask=mask),
    }
    values = {}
    for name, x in runs.items():
        error = ((x - x0).square() * (1 - mask)).sum((1, 2, 3)) / (1 - mask).sum((1, 2, 3))
        values[name] = error.double(), (judge(x).argmax(1) == label).double()
        found[name] = dict(
            zip(("squared error", "true class"), map(mean_interval, values[name]), strict=True)
        )
    gap, truer = (
        mean_interval(a - b)
        for a, b in zip(values["fine-tuned"], values["overwritten"], strict=True)
    )
    return Finding(
        {**found, "lower by": -gap.value, "truer by": truer.value},
        {"lower error": below(gap), "truer class": above(truer)},
        nfe=31,
    )
