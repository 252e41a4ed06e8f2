"""`fairlead compare`: guides side by side."""

from pathlib import Path
from typing import Annotated

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
    model: Annotated[str, typer.Option("--model", help="A shipped model, or a .safetensors file.")],
    guide: Annotated[list[str], typer.Option("--guide", help="A guide; repeat for more.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results, plots and samples.")],
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

    Writes compare.md, compare.json, compare.parquet, pareto.png and grid.png. A run that was
    stopped goes on when the same command is given again; samples and guides can be added.
    """
    from fairlead.studies.compare import compare as run
    from fairlead.studies.files import Samples
    from fairlead.studies.tables import COLUMNS, interval

    say = stderr()
    quoted = ", ".join(guide)
    say.print(
        Text(f"comparing {quoted} on {model}: {n} samples each, {steps} steps of {sampler}"),
        soft_wrap=True,
    )
    try:
        with arguments(), bar() as update:
            found = run(
                model,
                guide,
                out,
                n=n,
                steps=steps,
                sampler=sampler,
                seed=seed,
                chunk=chunk,
                precision=precision,
                device=device,
                progress=update,
            )
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
