"""`fairlead sample`: a picture of samples."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fairlead.cli.common import (
    INTERRUPTED,
    Device,
    Json,
    Precision,
    Sampler,
    Seed,
    Steps,
    arguments,
    bar,
    command,
    fail,
    print_json,
)

if TYPE_CHECKING:
    from fairlead.sampling import Result

EACH = 8
"""Samples of a class where `-n` is not given."""


@command
def sample(
    model: Annotated[str, typer.Argument(help="A shipped model, or a .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", help="Picture to write: one row a class.")],
    guide: Annotated[str, typer.Option("--guide", help="A guide, such as cfg(2).")] = "none",
    label: Annotated[
        list[int] | None, typer.Option("--label", help="Class by number; may be repeated.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--class", help="Class by name; may be repeated.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--n", help="Samples in all; default 8 a class.")
    ] = None,
    steps: Steps = 18,
    sampler: Sampler = "heun",
    seed: Seed = 0,
    tensor: Annotated[
        Path | None, typer.Option("--tensor", help="Also write x, labels and NFE as safetensors.")
    ] = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print branches, cost and norms at each step.")
    ] = False,
    precision: Precision = "float32",
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", help="Most rows in one network call.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Sample a model under a guide and write a picture, one row a class.

    Sample i shows class i modulo the number of classes asked for; default: all classes.
    """
    import torch

    from fairlead.guidance.spec import guide as parse
    from fairlead.models import zoo
    from fairlead.parameters import choose
    from fairlead.samplers.base import get as get_sampler
    from fairlead.sampling import Interrupted, Step, refuse_tokens
    from fairlead.sampling import sample as draw
    from fairlead.studies.compare import PRECISIONS
    from fairlead.studies.files import require_writable
    from fairlead.studies.plots import require_picture, save

    with arguments():
        parsed, rule = parse(guide), get_sampler(sampler)
    choose("sample", "precision", precision, PRECISIONS)
    require_picture(out)
    for path in (out, tensor):
        if path is not None:
            require_writable(path, folder=False)
    denoiser = zoo.load(model, device=device)
    refuse_tokens("sample", denoiser)
    denoiser.autocast = PRECISIONS[precision]
    names = tuple(zoo.card(model)["classes"])
    asked = _classes(label, name, names)
    count = EACH * len(asked) if n is None else n
    if count < 1:
        raise ValueError(f"sample: n must be at least 1, got {count}")
    labels = torch.tensor([asked[i % len(asked)] for i in range(count)])

    began = time.perf_counter()
    with bar() as update:
        update(str(parsed), 0, steps)

        def after(step: Step) -> None:
            update(str(parsed), step.index + 1, steps)

        try:
            result = draw(
                denoiser,
                {"label": labels},
                guide=parsed,
                sampler=rule,
                steps=steps,
                n=count,
                seed=seed,
                max_batch=max_batch,
                callback=after,
                record=describe,
            )
        except Interrupted as stopped:
            kept = ""
            if tensor is not None:
                _write_tensor(tensor, stopped.result, labels)
                kept = f"; the unfinished samples are in {tensor}"
            raise fail(f"{stopped}{kept}", INTERRUPTED) from None
    seconds = time.perf_counter() - began

    save(_picture(result, labels, asked, names), out)
    if tensor is not None:
        _write_tensor(tensor, result, labels)
    description = result.describe() if describe else None
    if json:
        print_json(
            {
                "model": model,
                "guide": str(parsed),
                "sampler": str(rule),
                "steps": steps,
                "seed": seed,
                "n": count,
                "labels": labels.tolist(),
                "classes": [names[c] for c in asked],
                "nfe": result.nfe.tolist(),
                "seconds": seconds,
                "out": str(out),
                "tensor": None if tensor is None else str(tensor),
                "describe": None if description is None else description.to_dict(),
            }
        )
        return
    console = Console()
    if description is not None:
        console.print(Text(f"{description}\n"), soft_wrap=True)
    nfe = result.nfe.double().mean().item()
    line = f"{count} samples under {parsed}: {nfe:g} network evaluations a sample, {seconds:.1f} s"
    console.print(Text(f"{line}\nwrote {out}"), soft_wrap=True)


def _classes(
    labels: list[int] | None, named: list[str] | None, known: tuple[str, ...]
) -> list[int]:
    """The classes asked for, without repeats, in the order given; default all.

    Raises:
        ValueError: There is no such class; says the nearest, or the range.
    """
    from fairlead.parameters import choose

    for value in labels or ():
        if not 0 <= value < len(known):
            raise ValueError(f"sample: label must be in 0..{len(known) - 1}, got {value}")
    for word in named or ():
        choose("sample", "class", word, known)
    asked = [*(labels or ()), *(known.index(v) for v in named or ())]
    return list(dict.fromkeys(asked)) or list(range(len(known)))


def _picture(result: "Result", labels: Any, asked: list[int], names: tuple[str, ...]) -> Any:
    """One row a class; the last rows may be one sample short."""
    import torch

    from fairlead.studies.plots import grid

    shown = [c for c in asked if bool((labels == c).any())]
    width = int(max((labels == c).sum() for c in shown))
    x = result.x.cpu()
    rows = []
    for c in shown:
        own = x[labels == c]
        blank = torch.ones(width - len(own), *x.shape[1:])
        rows.append(torch.cat([own, blank]))
    title = f"{result.guide}"
    return grid([(title, torch.cat(rows))], columns=width, row_titles=[names[c] for c in shown])


def _write_tensor(path: Path, result: "Result", labels: Any) -> None:
    from safetensors.torch import save_file

    draft = path.with_name(path.name + ".tmp")
    tensors = {"x": result.x.cpu().contiguous(), "label": labels, "nfe": result.nfe.contiguous()}
    save_file(tensors, draft, {"guide": str(result.guide), "t": str(float(result.level.t))})
    draft.replace(path)
