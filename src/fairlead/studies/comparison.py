"""What a comparison found: one row a guide."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairlead.metrics.bootstrap import Estimate


@dataclass(frozen=True)
class Row:
    """One guide's results.

    Attributes:
        guide: Its text.
        n: Number of samples.
        nfe: Mean network evaluations a sample.
        seconds: Mean wall-clock seconds a sample.
        metrics: Estimates by name; see `fairlead.metrics.report`.
    """

    guide: str
    n: int
    nfe: float
    seconds: float
    metrics: dict[str, Estimate]

    def flat(self) -> dict[str, Any]:
        """One row of a table: the ends of an interval stand in `<name>_low`, `<name>_high`."""
        found: dict[str, Any] = {
            "guide": self.guide,
            "n": self.n,
            "nfe": self.nfe,
            "seconds": self.seconds,
        }
        for name, e in self.metrics.items():
            found |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
        return found


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        settings: What all rows share: model, data, sampler, steps, n, seed, precision, weights.
        classes: Names of the classes; sample `i` shows class `i % len(classes)`.
        rows: One a guide, in the order given.
        folder: Where everything lies.
    """

    settings: dict[str, Any]
    classes: tuple[str, ...]
    rows: list[Row]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"settings": self.settings, "results": [asdict(r) for r in self.rows]}


def front(rows: Sequence[Row], cost: str = "nfe", value: str = "fd") -> list[int]:
    """Indices of the rows that no other beats in both cost and value, cheapest first."""
    points = [(r.flat()[cost], r.flat()[value]) for r in rows]
    best, kept = math.inf, []
    for i in sorted(range(len(rows)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            kept.append(i)
    return kept
