"""`fairlead steer`: a local diffusers pipeline under a guide."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fairlead.cli.common import Device, Json, Precision, Seed, arguments, bar, command, print_json
from fairlead.cli.pipelines import (
    Height,
    Image,
    Mask,
    MaxBatch,
    Negative,
    PipelineSteps,
    States,
    Width,
    inputs,
    load,
    states_of,
)

ENDINGS = {
    "picture": (".png", ".jpg", ".jpeg", ".webp"),
    "video": (".gif", ".webp"),
    "audio": (".wav",),
}


@command
def steer(
    pipeline: Annotated[
        Path, typer.Argument(help="Folder of a diffusers pipeline on this machine.")
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="What is to be made.")],
    out: Annotated[
        Path, typer.Option("--out", help="Picture, .gif or .webp for video, .wav for sound.")
    ],
    guide: Annotated[str, typer.Option("--guide", help="A guide, such as cfg(5).")] = "none",
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", help="pcg(...): corrects the steps of the pipeline's scheduler."),
    ] = None,
    negative: Negative = None,
    state: States = None,
    image: Image = None,
    mask: Mask = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Results; several are numbered files.")] = 1,
    steps: PipelineSteps = None,
    height: Height = None,
    width: Width = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of a video.")] = None,
    fps: Annotated[int, typer.Option("--fps", help="Frames a second of a video.")] = 8,
    seed: Seed = 0,
    max_batch: MaxBatch = None,
    precision: Precision = "float32",
    device: Device = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print branches, cost and norms at each step.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a local diffusers pipeline under a guide.

    Only safetensors are read, no code in the folder is run, and nothing is downloaded.
    Result i has seed SEED + i.
    """
    from fairlead.adapters.diffusers.local import accepted, generate, kind_of
    from fairlead.adapters.diffusers.steering import steer as steered
    from fairlead.guidance.spec import guide as parse
    from fairlead.studies.files import require_writable

    with arguments():
        parsed = parse(guide)
    prompts = states_of(state)
    if n < 1:
        raise ValueError(f"steer: n must be at least 1, got {n}")
    if fps < 1:
        raise ValueError(f"steer: fps must be at least 1, got {fps}")
    require_writable(out, folder=False)
    pipe = load(pipeline, device, precision)
    kind = kind_of(pipe)
    if out.suffix.lower() not in ENDINGS[kind]:
        raise ValueError(
            f"output: {type(pipe).__name__} makes {kind}, whose file must end in "
            f"{', '.join(ENDINGS[kind])}; got {str(out)!r}"
        )
    given = inputs(
        image,
        mask,
        negative,
        prompt=prompt,
        num_inference_steps=steps,
        height=height,
        width=width,
        num_frames=frames,
    )
    given = accepted(pipe, given)
    files, reports, began = [], [], time.perf_counter()
    options: dict[str, Any] = {"sampler": sampler, "max_batch": max_batch, "record": describe}
    with bar() as update, steered(pipe, parsed, prompts=prompts, **options) as steering:
        for i in range(n):
            update(str(parsed), i, n)
            made = generate(pipe, seed + i, given)
            reports.append(steering.report)
            files.append(out if n == 1 else out.with_stem(f"{out.stem}-{i}"))
            _write(made, files[-1], kind, pipe, fps)
    seconds = time.perf_counter() - began
    if json:
        print_json(
            {
                "pipeline": type(pipe).__name__,
                "folder": str(pipeline),
                "guide": str(parsed),
                "prompt": prompt,
                "seed": seed,
                "seconds": seconds,
                "files": [str(f) for f in files],
                "reports": [r.to_dict() for r in reports],
            }
        )
        return
    console = Console()
    if describe:
        console.print(Text(f"{reports[0]}\n"), soft_wrap=True)
    nfe = _number(reports[0].nfe)
    line = f"{type(pipe).__name__} under {parsed}: {nfe:g} network evaluations, {seconds:.1f} s"
    wrote = ", ".join(str(f) for f in files)
    console.print(Text(f"{line}\nwrote {wrote}"), soft_wrap=True)


def _number(nfe: Any) -> float:
    import torch

    return torch.as_tensor(nfe).double().mean().item()


def _write(made: Any, path: Path, kind: str, pipe: Any, fps: int) -> None:
    """Writes a result so that a kill leaves the old file or the new one."""
    draft = path.with_name(f".{path.name}")
    if kind == "picture":
        made.save(draft)
    elif kind == "video":
        first, *rest = made
        first.save(draft, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
    else:
        import numpy as np
        from scipy.io import wavfile

        from fairlead.adapters.diffusers.local import sampling_rate

        samples = (made.clamp(-1, 1).numpy().T * 32767).round().astype(np.int16)
        wavfile.write(draft, sampling_rate(pipe), samples)
    draft.replace(path)
