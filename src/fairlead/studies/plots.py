"""Pictures: labelled grids of samples, and quality against cost."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fairlead.studies.comparison import Comparison, Row, front

SIDE = 64
"""Side of one image in a grid, in pixels; smaller images are enlarged by whole factors."""
GAP = 2
FONT = 15
FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def grid(
    blocks: Sequence[tuple[str, Tensor]],
    *,
    columns: int,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """Images in rows, block under block.

    Args:
        blocks: Title (may be empty) and images `(N, C, H, W)` in [-1, 1], C = 1 or 3, filled row
            by row; beyond the range they are clamped.
        columns: Images a row.
        column_titles: Stand over each block's columns.
        row_titles: Stand left of the rows of each block.

    Raises:
        ValueError: The images have another number of channels.
    """
    font = ImageFont.load_default(FONT)
    height, width = blocks[0][1].shape[-2:]
    scale = max(1, SIDE // max(height, width))
    cell_w, cell_h = width * scale + GAP, height * scale + GAP
    line = FONT + 7
    left = max((math.ceil(font.getlength(t)) + 10 for t in row_titles), default=GAP)
    # one narrow column must not cut the titles off
    needed = [left + font.getlength(title) + 10 for title, _ in blocks]
    rows = [math.ceil(len(x) / columns) for _, x in blocks]
    heads = [(line if title else 0) + (line if column_titles else 0) for title, _ in blocks]
    size = (
        math.ceil(max(left + columns * cell_w, *needed)),
        sum(heads) + sum(rows) * cell_h + GAP,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for (title, images), count in zip(blocks, rows, strict=True):
        if title:
            draw.text((left, top), title, "black", font)
            top += line
        for j, text in enumerate(column_titles):
            _fitted(draw, text, left + j * cell_w, top, cell_w - GAP)
        top += line if column_titles else 0
        for i, text in enumerate(row_titles[:count]):
            y = top + i * cell_h + cell_h // 2
            draw.text((left - 6, y), text, "black", font, anchor="rm")
        for k, picture in enumerate(pictures(images, scale)):
            canvas.paste(picture, (left + k % columns * cell_w, top + k // columns * cell_h))
        top += count * cell_h
    return canvas


def pictures(images: Tensor, scale: int = 1) -> list[Image.Image]:
    """Images `(N, C, H, W)` in [-1, 1] as 8-bit RGB, enlarged by a whole factor.

    Raises:
        ValueError: C is neither 1 nor 3.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"grid: images must be (N, C, H, W) with C = 1 or 3, got {tuple(images.shape)}"
        )
    bytes_ = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rgb = bytes_.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
    size = (rgb.shape[2] * scale, rgb.shape[1] * scale)
    return [Image.fromarray(a).resize(size, Image.Resampling.NEAREST) for a in rgb]


def _fitted(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, width: int) -> None:
    """Writes a line in the greatest size that is no wider than `width`."""
    for size in range(FONT, 7, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            break
    draw.text((x, y + 2), text, "dimgray", font)


def plot_grid(found: Comparison, images: Sequence[Tensor], path: Path) -> None:
    """One block a guide, one column a class, one row a seed."""
    titles = [f"{r.guide}   ({r.nfe:g} evaluations)" for r in found.rows]
    made = grid(
        list(zip(titles, images, strict=True)),
        columns=len(found.classes),
        column_titles=found.classes,
    )
    save(made, path)


def require_picture(path: Path) -> None:
    """Checks that the name of a picture says a format that can be written.

    Raises:
        ValueError: It does not; lists some that do.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"output: a picture must end in {', '.join(FORMATS)}, got {str(path)!r}")


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture so that a kill leaves the old file or the new one."""
    draft = path.with_name(f".{path.name}")
    picture.save(draft)
    draft.replace(path)


def plot_pareto(found: Comparison, path: Path) -> None:
    """Fréchet distance against NFE, and accuracy against diversity, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2 + 0.22 * len(found.rows)), layout="constrained")
    cost, quality = figure.subplots(1, 2)
    data = found.settings["data"]
    handles = [_point(cost, i, (r.nfe, None), _ends("fd", r)) for i, r in enumerate(found.rows)]
    best = [found.rows[i] for i in front(found.rows)]
    cost.step(
        [r.nfe for r in best],
        [r.metrics["fd"].value for r in best],
        where="post",
        color="gray",
        lw=1,
        ls=":",
        zorder=0,
    )
    cost.set(xlabel="network evaluations a sample", ylabel=f"Fréchet distance ({data} features)")
    for i, r in enumerate(found.rows):
        _point(quality, i, _ends("diversity", r), _ends("accuracy", r))
    quality.set(xlabel="diversity in class", ylabel="class accuracy")
    for axes in (cost, quality):
        axes.grid(alpha=0.3)
        axes.margins(0.12)
    labels = [f"{i + 1}  {r.guide}" for i, r in enumerate(found.rows)]
    figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False)
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=130)
    draft.replace(path)


MARKERS = "osD^v<>Pphd"


def plot_lines(
    found: Comparison, lines: Mapping[str, Sequence[str]], scales: Sequence[float], path: Path
) -> None:
    """As `plot_pareto`, the points of a method joined in the order of the scale.

    Args:
        found: The results.
        lines: Texts of the guides of each method.
        scales: The scale of each text of a line; small numbers beside the first line that has
            them all say which is which.
        path: Where to write.
    """
    from matplotlib.figure import Figure

    rows = {r.guide: r for r in found.rows}
    figure = Figure(figsize=(13, 6), layout="constrained")
    cost, quality = figure.subplots(1, 2)
    data, handles = found.settings["data"], []
    for i, (name, texts) in enumerate(lines.items()):
        own = [rows[t] for t in texts]
        fd = [_ends("fd", r) for r in own]
        x, y = ([_ends(k, r) for r in own] for k in ("diversity", "accuracy"))
        plain = name in ("none", "cfg")
        style: dict[str, Any] = {
            "marker": "*" if name == "none" else MARKERS[i // 10 % len(MARKERS)],
            "color": "black" if plain else f"C{i % 10}",
            "lw": 2 if plain else 1,
            "ms": 12 if name == "none" else 5,
            "zorder": 3 if plain else 2,
            "elinewidth": 0.5,
        }
        nfe = [r.nfe for r in own]
        bars = _bars(fd)
        handles.append(cost.errorbar(nfe, [v for v, _ in fd], yerr=bars, **style))
        quality.errorbar(
            [v for v, _ in x], [v for v, _ in y], xerr=_bars(x), yerr=_bars(y), **style
        )
        if name == "cfg":
            for w, at, (fd_value, _), (across, _), (up, _) in zip(
                scales, nfe, fd, x, y, strict=True
            ):
                for axes, point in ((cost, (at, fd_value)), (quality, (across, up))):
                    axes.annotate(f"{w:g}", point, xytext=(5, 4), textcoords="offset points")
    cost.set(xlabel="network evaluations a sample", ylabel=f"Fréchet distance ({data} features)")
    quality.set(xlabel="diversity in class", ylabel="class accuracy")
    for axes in (cost, quality):
        axes.grid(alpha=0.3)
        axes.margins(0.08)
    figure.legend(handles, list(lines), loc="outside right upper", frameon=False)
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=130)
    draft.replace(path)


def _bars(ends: Sequence[tuple[float, list[list[float]]]]) -> list[list[float]]:
    """How far the intervals of several values reach down and up."""
    return [[reach[side][0] for _, reach in ends] for side in (0, 1)]


def _point(axes: Any, i: int, x: tuple[float, Any], y: tuple[float, Any]) -> Any:
    """One numbered point with its intervals; returns its handle for the legend."""
    handle = axes.errorbar(
        x[0], y[0], xerr=x[1], yerr=y[1], fmt="o", ms=6, capsize=3, color=f"C{i % 10}"
    )
    axes.annotate(str(i + 1), (x[0], y[0]), xytext=(6, 5), textcoords="offset points")
    return handle


def _ends(name: str, row: Row) -> tuple[float, list[list[float]]]:
    """A value, and how far its interval reaches down and up."""
    e = row.metrics[name]
    return e.value, [[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]]
