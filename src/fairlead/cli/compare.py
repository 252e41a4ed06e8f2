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
    Seed,
    arguments,
    bar,
    command,
    fail,
    print_json,
    stderr,
)
from fairlead.cli.pipelines import (
    Height,
    Image,
    Mask,
    MaxBatch,
    Negative,
    Prompts,
    States,
    Width,
    inputs,
    load,
    states_of,
)

SHOWN = ("fd", "accuracy", "diversity", "saturation")


@command
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder for results, plots and samples.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="A shipped model, or a .safetensors file; default cifar10."),
    ] = None,
    pipeline: Annotated[
        Path | None,
        typer.Option("--pipeline", help="Folder of a diffusers pipeline, instead of a model."),
    ] = None,
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
        list[float] | None,
        typer.Option(
            "--scale",
            help="A scale of the preset, or what {w} in a guide becomes; repeat for more.",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--n", help="Samples a guide, default 500; of a pipeline: pictures a prompt, 1."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps; default 18, or the pipeline's own.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="A sampler's name or text, default heun; of a pipeline: pcg(...), which corrects "
            "its scheduler's steps.",
        ),
    ] = None,
    seed: Seed = 0,
    chunk: Annotated[
        int, typer.Option("--chunk", help="Samples between two files; a kill loses no more.")
    ] = 50,
    prompt: Prompts = None,
    negative: Negative = None,
    state: States = None,
    image: Image = None,
    mask: Mask = None,
    height: Height = None,
    width: Width = None,
    max_batch: MaxBatch = None,
    precision: Precision = "float32",
    device: Device = None,
    json: Json = False,
) -> None:
    """Compare guides: quality, diversity and cost from the same noise, with intervals.

    `--preset` compares every method of a kind over the scale, with CFG and no guidance, and joins
    the points of a method.

    With --model it writes compare.md, compare.json, compare.parquet, pareto.png and grid.png. A
    run that was stopped goes on when the same command is given again; samples and guides can be
    added. With --pipeline it writes pictures for each --prompt, guide and scale, their grid, and
    what they cost; only safetensors are read, and nothing is downloaded. That goes on, too.
    """
    if pipeline is not None:
        if model is not None:
            raise ValueError("compare: give either --model or --pipeline")
        if preset or not guide:
            raise ValueError("compare: name guides for a pipeline with --guide")
        if not prompt:
            raise ValueError("compare: a pipeline wants at least one --prompt")
        arguments_of = {"num_inference_steps": steps, "height": height, "width": width}
        given = inputs(image, mask, negative, **arguments_of)
        _pipeline(
            load(pipeline, device, precision),
            guide,
            prompt,
            out,
            scales=scale or (),
            n=1 if n is None else n,
            seed=seed,
            given=given,
            states=states_of(state),
            sampler=sampler,
            max_batch=max_batch,
            json=json,
        )
        return
    for option, value in (("--prompt", prompt), ("--state", state), ("--negative", negative)):
        if value:
            raise ValueError(f"compare: {option} goes with --pipeline, not with --model")
    if max_batch is not None:
        raise ValueError("compare: --max-batch goes with --pipeline, not with --model")
    model = "cifar10" if model is None else model
    sampler = "heun" if sampler is None else sampler
    n = 500 if n is None else n
    steps = 18 if steps is None else steps
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


def _pipeline(
    pipe: Any,
    guides: list[str],
    prompts: list[str],
    out: Path,
    *,
    given: dict[str, Any],
    json: bool,
    **options: Any,
) -> None:
    """Pictures of a pipeline under several guides."""
    from dataclasses import asdict

    from fairlead.studies.pictures import compare_pictures, count, grouped

    try:
        with arguments(), bar() as update:
            shots = compare_pictures(
                pipe, guides, prompts, out, arguments=given, progress=update, **options
            )
    except KeyboardInterrupt:
        message = (
            f"stopped; {count(out)} pictures are kept in {out}; give the same command again to "
            "continue"
        )
        raise fail(message, INTERRUPTED) from None
    if json:
        print_json([asdict(shot) for shot in shots])
        return
    table = Table(Column("guide", overflow="fold"), "scale", "NFE", "s", "saturation", "moved")
    for group in grouped(shots):
        first = group[0]
        means = [
            sum(getattr(s, name) for s in group) / len(group)
            for name in ("nfe", "seconds", "saturation", "moved")
        ]
        scale = "" if first.scale is None else f"{first.scale:g}"
        table.add_row(*(Text(c) for c in (first.guide, scale, *(f"{m:.3g}" for m in means))))
    console = Console()
    console.print(table)
    names = ", ".join(str(out / f) for f in ("grid.png", "compare.md", "compare.json"))
    console.print(Text(f"wrote {names}"), soft_wrap=True)
