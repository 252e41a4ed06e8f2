"""Results of a comparison as Markdown and Parquet."""

import shlex
from pathlib import Path

from fairlead.metrics.bootstrap import Estimate
from fairlead.studies.comparison import Comparison

COLUMNS = {
    "fd": "Fréchet distance ↓",
    "accuracy": "class accuracy ↑",
    "diversity": "diversity in class ↑",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density",
    "coverage": "coverage ↑",
    "confidence": "confidence",
    "saturation": "saturation",
    "clipped": "clipped",
}
SHOWN = ("fd", "accuracy", "diversity", "precision", "recall", "coverage", "saturation", "clipped")


def interval(estimate: Estimate) -> str:
    """`value [low, high]` with three digits."""
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def markdown(found: Comparison) -> str:
    """The page `compare.md`."""
    s = found.settings
    shown = [c for c in SHOWN if all(c in r.metrics for r in found.rows)]
    head = ["guide", "NFE", *(COLUMNS[c] for c in shown), "s / sample"]
    lines = [
        f"# Guides compared on {s['model']}",
        "",
        f"{s['n']} samples a guide, classes balanced, the same noise under every guide; sampler "
        f"`{s['sampler']}`, {s['steps']} steps, seed {s['seed']}, network in {s['precision']}.",
        "",
        _row(head),
        _row(["---", *["---:"] * (len(head) - 1)]),
    ]
    for r in found.rows:
        cells = [interval(r.metrics[c]) for c in shown]
        guide = r.guide.replace("|", "\\|")  # a bare pipe ends a cell, also inside code
        lines.append(_row([f"`{guide}`", f"{r.nfe:g}", *cells, f"{r.seconds:.3g}"]))
    lines += [
        "",
        f"Features are those of the {s['features']}: distances in this space are no FID, and a "
        "Fréchet distance falls as n grows, so compare rows of one table. Brackets are 95 % "
        "bootstrap intervals. NFE: network evaluations a sample, each branch counted.",
        "",
        "![quality against cost, accuracy against diversity](pareto.png)",
        "",
        "![samples](grid.png)",
        "",
        "Made by:",
        "",
        "```",
        command(found),
        "```",
        "",
    ]
    return "\n".join(lines)


def command(found: Comparison) -> str:
    """The command line that makes, or continues, the comparison."""
    s = found.settings
    words = ["fairlead", "compare", "--model", s["model"]]
    for r in found.rows:
        words += ["--guide", r.guide]
    words += ["-n", str(s["n"]), "--steps", str(s["steps"]), "--sampler", s["sampler"]]
    words += ["--seed", str(s["seed"])]
    if s["precision"] != "float32":
        words += ["--precision", s["precision"]]
    return shlex.join([*words, "--out", str(found.folder)])


def write_parquet(found: Comparison, path: Path) -> None:
    """One row a guide, with the settings in columns of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{**found.settings, **r.flat()} for r in found.rows])
    draft = path.with_name(path.name + ".tmp")
    pq.write_table(table, draft)
    draft.replace(path)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
