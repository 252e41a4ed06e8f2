"""`fairlead compare`: guides side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
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
    stderr,
)

SHOWN = ("fd", "accuracy", "diversity", "saturation")


@command
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder for results, plots and samples.")],
    model: Annotated[
        str, typer.Option("--model", help="A shipped model, or a .safetensors file.")
    ] = "cifar10",
    guide: Annotated[
        list[str] | None, typer.Option("--guide", help="A guide; repeat for more.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Every method of a kind over the scale: rules, perturbations or policies.",
        ),
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option("--scale", help="A scale of the preset; repeat for more.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Samples a guide, classes balanced.")] = 500,
    steps: Steps = 18,
    sampler: Sampler = "heun",
    seed: Seed = 0,
    chunk: Annotated[
        int, typer.Option("--chunk", help="Samples between two files; a kill loses no more.")
    ] = 50,
    precision: Precision = "float32",
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare guides: quality, diversity and cost from the same noise, with intervals.

    `--preset` compares every method of a kind over the scale, with CFG and no guidance, and joins
    the points of a method.

    Writes compare.md, compare.json, compare.parquet, pareto.png and grid.png. A run that was
    stopped goes on when the same command is given again; samples and guides can be added.
    """
    from fairlead.studies import presets
    from fairlead.studies.compare import compare as run
    from fairlead.studies.files import Samples
    from fairlead.studies.tables import COLUMNS, interval

    if bool(guide) == bool(preset):
        raise ValueError("compare: name guides with --guide, or one --preset")
    if scale and not preset:
        raise ValueError("compare: --scale belongs to a --preset; write scales into the guides")
    say = stderr()
    scales = scale or presets.SCALES
    if preset:
        presets.lines(preset, scales)  # refused before the model is loaded
    quoted = ", ".join(guide or [f"the preset {preset}"])
    say.print(
        Text(f"comparing {quoted} on {model}: {n} samples each, {steps} steps of {sampler}"),
        soft_wrap=True,
    )
    try:
        with arguments(), bar() as update:
            options: dict[str, Any] = {
                "n": n,
                "steps": steps,
                "sampler": sampler,
                "seed": seed,
                "chunk": chunk,
                "precision": precision,
                "device": device,
                "progress": update,
            }
            if preset:
                found, left_out = presets.run(preset, out, model=model, scales=scales, **options)
                for name, reason in left_out.items():
                    say.print(Text(f"left out: {name}: {reason}"), soft_wrap=True)
            else:
                found = run(model, guide or [], out, **options)
    except KeyboardInterrupt:
        message = (
            f"stopped; {Samples.count(out)} samples are kept in {out}; give the same command "
            "again to continue"
        )
        raise fail(message, INTERRUPTED) from None
    if json:
        print_json(found.to_dict())
        return
    table = Table(Column("guide", overflow="fold"), "NFE", *(COLUMNS[c] for c in SHOWN))
    for row in found.rows:
        cells = [row.guide, f"{row.nfe:g}", *(interval(row.metrics[c]) for c in SHOWN)]
        table.add_row(*(Text(c) for c in cells))
    console = Console()
    console.print(table)
    features = found.settings["features"]
    console.print(Text(f"in the space of the {features}; 95 % intervals"), soft_wrap=True)
    names = ", ".join(str(out / f) for f in ("compare.md", "pareto.png", "grid.png"))
    console.print(Text(f"wrote {names}"), soft_wrap=True)
