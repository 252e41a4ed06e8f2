"""Guides side by side on a pipeline: pictures from the same noise, and what they cost."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import fairlead
from fairlead.adapters.diffusers.local import accepted, generate, kind_of
from fairlead.adapters.diffusers.steering import steer
from fairlead.guidance.spec import guide as parse
from fairlead.metrics.saturation import clipped_fraction, saturation
from fairlead.studies.files import fingerprint, require_same, require_writable, to_json, write_text
from fairlead.studies.plots import grid, save

SLOT = "{w}"
"""What a scale takes the place of in the text of a guide."""

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        guide: The guide as it was given, with `{w}` in it where scales are compared.
        scale: What stood for `{w}`.
        prompt: The prompt.
        seed: Seed of the noise.
        nfe: Network evaluations of the sample.
        seconds: Time of the whole call.
        saturation: Mean saturation of its colours.
        clipped: Share of values at the ends of the range.
        moved: Root mean square distance, in [0, 2], from the first guide's picture.
        file: Where it lies, below the study's folder.
    """

    guide: str
    scale: float | None
    prompt: str
    seed: int
    nfe: float
    seconds: float
    saturation: float
    clipped: float
    moved: float
    file: str


def compare_pictures(
    pipe: Any,
    guides: Sequence[str],
    prompts: Sequence[str],
    out: str | Path,
    *,
    scales: Sequence[float] = (),
    n: int = 1,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    states: Mapping[str, str] | None = None,
    sampler: str | None = None,
    max_batch: int | None = None,
    progress: Progress = lambda *_: None,
) -> list[Shot]:
    """Pictures of a pipeline under several guides, each from the same noise.

    A run that was stopped goes on when it is called again with the same settings: each picture
    that is there, and whole, is kept. Guides, scales, prompts and pictures can be added.

    Written to `out`: the pictures, `grid.png`, `compare.json` and `compare.md`. The grid has
    a block for each guide: without scales a column for each prompt and seed, with scales a column
    for each scale and a row for each prompt and seed.

    Args:
        pipe: A pipeline that makes pictures.
        guides: Texts of guides; with scales, each holds `{w}`.
        prompts: Prompts.
        out: Folder.
        scales: What `{w}` becomes.
        n: Pictures of each prompt; picture `i` has seed `seed + i`.
        seed: First seed.
        arguments: Further arguments of the pipeline's call.
        states: Further prompts by state, see `fl.steer`.
        sampler: Corrects the scheduler's steps, see `fl.steer`.
        max_batch: Most rows in one call of the network.
        progress: Called as `progress(what, done, total)` before each picture.

    Raises:
        ValueError: The pipeline makes no pictures; a guide has no place for the scales, or a place
            and no scales; an argument is unknown; `out` cannot be written, or holds pictures made
            with other settings.
    """
    if kind_of(pipe) != "picture":
        raise ValueError(
            f"compare: {type(pipe).__name__} makes {kind_of(pipe)}, and only pictures are compared"
        )
    if not guides or not prompts:
        raise ValueError("compare: give at least one guide and one prompt")
    if n < 1:
        raise ValueError(f"compare: n must be at least 1, got {n}")
    runs = [(text, scale) for text in guides for scale in (scales or (None,))]
    parsed = {run: parse(_filled(*run)) for run in runs}
    given = accepted(pipe, arguments or {})
    folder = Path(out)
    require_writable(folder / "samples", folder=True)
    options: dict[str, Any] = {"prompts": states, "sampler": sampler, "max_batch": max_batch}
    for guide in parsed.values():
        steer(pipe, guide, **options)  # refused before the first picture
    modules = [m for _, m in sorted(pipe.components.items()) if isinstance(m, nn.Module)]
    require_same(
        folder,
        {
            "pipeline": type(pipe).__name__,
            "scheduler": _said(sorted(_public(pipe.scheduler.config).items())),
            "weights": fingerprint(*modules),
            "arguments": {name: _said(value) for name, value in sorted(given.items())},
            "states": dict(states or {}),
            "sampler": sampler,
            "fairlead": fairlead.__version__,
        },
    )
    shots: list[Shot] = []
    pictures: dict[tuple[str, float | None], list[Tensor]] = {run: [] for run in runs}
    total = len(runs) * len(prompts) * n
    for text, scale in runs:
        for i, prompt in enumerate(prompts):
            for k in range(n):
                progress(str(parsed[text, scale]), len(shots), total)
                guide = parsed[text, scale]
                key = json.dumps([str(guide), prompt, seed + k]).encode()
                name = f"samples/{hashlib.sha256(key).hexdigest()[:12]}.png"
                kept = _kept(folder / name)
                if kept is None:
                    began = time.perf_counter()
                    with steer(pipe, guide, **options) as steering:
                        picture = generate(pipe, seed + k, {**given, "prompt": prompt})
                    seconds = time.perf_counter() - began
                    nfe = torch.as_tensor(steering.report.nfe).double().mean().item()
                    _keep(folder / name, picture, nfe, seconds)
                else:
                    picture, nfe, seconds = kept
                values = _values(picture)
                row = pictures[text, scale]
                row.append(values)
                first = pictures[runs[0]][i * n + k]
                shots.append(
                    Shot(
                        text,
                        scale,
                        prompt,
                        seed + k,
                        nfe,
                        seconds,
                        saturation(values[None], resamples=2).value,
                        clipped_fraction(values[None], resamples=2).value,
                        (values - first).square().mean().sqrt().item(),
                        name,
                    )
                )
    progress("writing", total, total)
    rows = [f"{_short(p)} {seed + k}" if n > 1 else _short(p) for p in prompts for k in range(n)]
    save(_grid(guides, scales, rows, pictures), folder / "grid.png")
    write_text(folder / "compare.json", to_json([asdict(s) for s in shots]) + "\n")
    write_text(folder / "compare.md", table(shots))
    return shots


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what its library keeps for itself."""
    return {k: v for k, v in config.items() if not k.startswith("_")}


def _said(value: Any) -> Any:
    """An argument as JSON that tells it from others."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    data = value.tobytes() if isinstance(value, Image.Image) else repr(value).encode()
    return f"{type(value).__name__} {hashlib.sha256(data).hexdigest()[:16]}"


def _keep(file: Path, picture: Image.Image, nfe: float, seconds: float) -> None:
    """Keeps a picture; what it cost is written last, and says that the picture is whole."""
    save(picture, file)
    write_text(file.with_suffix(".json"), to_json({"nfe": nfe, "seconds": seconds}) + "\n")


def _kept(file: Path) -> tuple[Image.Image, float, float] | None:
    """A picture that was kept, and what it cost; `None` if it is absent or damaged."""
    try:
        cost = json.loads(file.with_suffix(".json").read_text())
        with Image.open(file) as picture:
            picture.load()
        return picture, float(cost["nfe"]), float(cost["seconds"])
    except (OSError, KeyError, TypeError, ValueError):
        return None


def count(folder: Path) -> int:
    """How many whole pictures a study's folder holds."""
    return len([f for f in (folder / "samples").glob("*.png") if f.with_suffix(".json").is_file()])


def _filled(text: str, scale: float | None) -> str:
    """A guide's text with the scale in its place."""
    if scale is None:
        if SLOT in text:
            raise ValueError(f"compare: {text!r} has a place for scales, and none is given")
        return text
    if SLOT not in text:
        raise ValueError(
            f"compare: scales are given, and {text!r} has no place for them, such as cfg({SLOT})"
        )
    return text.replace(SLOT, repr(float(scale)))


def _values(picture: Image.Image) -> Tensor:
    """A picture as `(3, H, W)` in [-1, 1]."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"


def _grid(
    guides: Sequence[str],
    scales: Sequence[float],
    rows: Sequence[str],
    pictures: Mapping[tuple[str, float | None], list[Tensor]],
) -> Image.Image:
    def block(columns: list[list[Tensor]]) -> Tensor:
        return torch.stack([column[i] for i in range(len(rows)) for column in columns])

    if not scales:
        blocks = [(g, torch.stack(pictures[g, None])) for g in guides]
        return grid(blocks, columns=len(rows), column_titles=rows)
    blocks = [(g, block([pictures[g, s] for s in scales])) for g in guides]
    titles = [f"{s:g}" for s in scales]
    return grid(blocks, columns=len(titles), column_titles=titles, row_titles=rows)


def table(shots: Sequence[Shot]) -> str:
    """Means over prompts and seeds, in Markdown."""
    lines = [
        "| guide | scale | NFE | seconds | saturation | clipped | moved |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group in grouped(shots):
        means = [
            sum(getattr(s, name) for s in group) / len(group)
            for name in ("nfe", "seconds", "saturation", "clipped", "moved")
        ]
        scale = "" if group[0].scale is None else f"{group[0].scale:g}"
        guide = group[0].guide.replace("|", "\\|")
        cells = [f"`{guide}`", scale, *(f"{m:.3g}" for m in means)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def grouped(shots: Sequence[Shot]) -> list[list[Shot]]:
    """The pictures of each guide and scale."""
    found: dict[tuple[str, float | None], list[Shot]] = {}
    for shot in shots:
        found.setdefault((shot.guide, shot.scale), []).append(shot)
    return list(found.values())
