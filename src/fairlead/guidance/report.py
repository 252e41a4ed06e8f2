"""What a run did: branches, their provenance, evaluations, and the size of each term."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Entry:
    """One evaluation of a guide.

    Attributes:
        step: Index of the step.
        stage: Index of the evaluation inside the step.
        t: Time.
        provenance: `evaluated`, `skipped`, or what a policy put in, by branch name.
        norms: Mean L2 norm over samples of each term's direction times its weight.
    """

    step: int
    stage: int
    t: float
    provenance: dict[str, str]
    norms: dict[str, Tensor | float] = field(default_factory=dict)


class Report:
    """The log of a run.

    Attributes:
        entries: One entry an evaluation.
        nfe: Network evaluations so far: a number, or one a sample `(B,)`.
    """

    def __init__(self, record: bool = True) -> None:
        self.record = record
        self.entries: list[Entry] = []
        self.nfe: int | Tensor = 0
        self.calls = 0

    def begin(self, step: int, stage: int, t: float) -> None:
        """Opens the entry of an evaluation."""
        self.entries.append(Entry(step, stage, t, {}))

    def count(self, batch: int, rows: Tensor | None) -> None:
        """Counts one evaluation for all samples, or for some rows."""
        if rows is None:
            self.nfe = self.nfe + 1
        else:
            added = torch.zeros(batch, dtype=torch.long, device=rows.device)
            self.nfe = added.index_fill_(0, rows, 1) + self.nfe

    def norm(self, term: str, update: Tensor) -> None:
        """Keeps the mean norm over samples of one term."""
        if self.record and self.entries:
            norms = self.entries[-1].norms
            size = torch.linalg.vector_norm(update.flatten(1), dim=1).mean()
            norms[term] = norms.get(term, 0.0) + size

    def to_dict(self) -> list[dict[str, Any]]:
        """The entries as plain numbers and strings, for JSON."""
        return [
            {
                "step": e.step,
                "stage": e.stage,
                "t": float(e.t) if not isinstance(e.t, Tensor) else e.t.tolist(),
                "branches": e.provenance,
                "norms": {k: float(v) for k, v in e.norms.items()},
            }
            for e in self.entries
        ]

    def __str__(self) -> str:
        names = list(dict.fromkeys(k for e in self.entries for k in e.provenance))
        terms = list(dict.fromkeys(k for e in self.entries for k in e.norms))
        head = ["step", "t", *names, *(f"|{t}|" for t in terms)]
        rows = [head]
        for e in self.entries:
            marks = [_MARKS.get(m, m) for m in (e.provenance.get(n, "-") for n in names)]
            norms = [f"{float(e.norms[t]):.3g}" if t in e.norms else "-" for t in terms]
            time = f"{e.t:.4g}" if not isinstance(e.t, Tensor) else "per sample"
            rows.append([str(e.step), time, *marks, *norms])
        widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        nfe = self.nfe if isinstance(self.nfe, int) else self.nfe.double().mean().item()
        return "\n".join([*lines, f"evaluations per sample: {nfe:g}, network calls: {self.calls}"])


_MARKS = {"evaluated": "x", "skipped": "-"}
