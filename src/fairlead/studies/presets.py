"""Comparisons of all methods of a kind over the scale, with CFG and no guidance beside them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import REGISTRY, Guide, Node, Policy, Rule, Term
from fairlead.guidance.branch import Branch
from fairlead.guidance.spec import guide as parse
from fairlead.models import zoo
from fairlead.parameters import choose
from fairlead.sampling import sample
from fairlead.studies.compare import compare
from fairlead.studies.comparison import Comparison
from fairlead.studies.plots import plot_lines
from fairlead.testing.subject import NotApplicable, Subject, example

SCALES = (1.5, 2.0, 3.0, 5.0)
"""Guidance scales of a preset; a perturbation whose strength is 0 when off gets one less."""

SETTINGS = {"apg": "apg(r=2.5, beta=-0.5)", "bands": "bands(2.0)", "skim": "skim(2.0)"}
"""Settings for small images, where a docstring's example is for large ones."""

PRESETS = {
    "rules": "cfg at each scale through every rule",
    "perturbations": "every term that pushes away from a perturbed prediction, at each scale",
    "policies": "cfg at each scale under every policy",
}
"""What there is, and what each compares."""


def lines(preset: str, scales: Sequence[float] = SCALES) -> dict[str, list[str]]:
    """The guides of a preset: for each method, by name, one text a scale; `none` has one in all.

    Args:
        preset: A name of `PRESETS`.
        scales: Guidance scales, all different, none of them 1.

    Raises:
        ValueError: The preset is unknown, or a scale is out of range.
    """
    choose("compare", "preset", preset, PRESETS)
    if not scales or len(set(scales)) < len(scales):
        raise ValueError(f"compare: scales must be given and differ, got {list(scales)}")
    if any(not math.isfinite(w) or w == 1 for w in scales):
        raise ValueError(f"compare: scales must be finite and not 1, got {list(scales)}")
    found = {"none": ["none"], "cfg": [str(parse(f"cfg({w})")) for w in scales]}
    for name, cls in REGISTRY.items():
        if name == "cfg" or "continuous" not in cls.domains or not _belongs(cls, preset):
            continue
        try:
            found[name] = [str(_scaled(cls, w)) for w in scales]
        except NotApplicable:  # a term without a scale
            continue
    return found


def _belongs(cls: type[Node], preset: str) -> bool:
    if preset == "policies":
        return issubclass(cls, Policy)
    if preset == "rules":
        return issubclass(cls, Rule)
    if not issubclass(cls, Term):
        return False
    term = example(cls)
    assert isinstance(term, Term)
    if getattr(term, "masks", ()):  # it concerns a region that is asked for, not the whole sample
        return False
    return any(_perturbed(b) for _, *pair in term.differences for b in pair)


def _perturbed(branch: Branch) -> bool:
    return bool(branch.perturbations or branch.transforms or branch.point or branch.model)


def _scaled(cls: type[Node], w: float) -> Guide:
    if cls.name in SETTINGS:
        return parse(f"cfg({w}) | {SETTINGS[cls.name]}")
    subject = Subject.of(cls)
    off_at_zero = issubclass(cls, Term) and (cls.neutral or "").partition(",")[0] == "0.0"
    return subject.scaled(w - 1 if off_at_zero else w)


def run(
    preset: str,
    out: Path | str,
    *,
    model: str = "cifar10",
    scales: Sequence[float] = SCALES,
    device: str | None = None,
    left_out: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[Comparison, dict[str, str]]:
    """Runs a preset, or goes on with one; `pareto.png` joins the points of each method.

    Args:
        preset: A name of `PRESETS`.
        out: Folder, as in `compare`.
        model: A shipped model, or a file as in `fl.load`.
        scales: Guidance scales.
        device: Where to sample.
        left_out: Methods to leave out and why; default: those that one step of the model refuses.
        options: Further arguments of `compare`, such as `n`, `steps` and `progress`.

    Returns:
        The results, and the methods that were left out with the reason.

    Raises:
        ValueError: As in `lines` and `compare`.
    """
    chosen = lines(preset, scales)
    if left_out is None:
        left_out = refused(zoo.load(model, device=device), chosen)
    chosen = {name: texts for name, texts in chosen.items() if name not in left_out}
    found = compare(
        model, [t for texts in chosen.values() for t in texts], out, device=device, **options
    )
    plot_lines(found, chosen, list(scales), found.folder / "pareto.png")
    return found, dict(left_out)


def refused(denoiser: Denoiser, chosen: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The methods that a model does not serve, each with what it says to one step."""
    found = {}
    for name, texts in chosen.items():
        try:
            label = {"label": torch.zeros(1, dtype=torch.long)}
            sample(denoiser, label, guide=texts[0], sampler="ddim", steps=1, record=False)
        except ValueError as error:
            found[name] = str(error)
    return found
