"""What a run did: branches, their provenance, evaluations, and the size of each term."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairlead.guidance.branch import Branch


@dataclass(slots=True)
class Entry:
    """One evaluation of a guide.

    Attributes:
        step: Index of the step.
        stage: Index of the evaluation inside the step.
        t: Time.
        wanted: The branches that the guide wanted.
        provided: Provenance of those that a policy provided, by name.
        norms: L2 norm of each weighted term over the whole batch.
        batch: Number of samples.
    """

    step: int
    stage: int
    t: float
    wanted: tuple[Branch, ...]
    batch: int
    provided: dict[str, str] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, float]:
        """Norm of each term, as the root mean square of the samples' L2 norms."""
        return {k: float(v) / self.batch**0.5 for k, v in self.norms.items()}

    @property
    def provenance(self) -> dict[str, str]:
        """`evaluated`, or what a policy put in, by branch name."""
        return {b.name: self.provided.get(b.name, "evaluated") for b in self.wanted}


class Report:
    """The log of a run.

    Attributes:
        entries: One entry an evaluation.
        nfe: Network evaluations so far: a number, or one a sample `(B,)`.
        shared: How many of these took over the trunk of another (`Denoiser(trunk=...)`).
        backwards: Backward passes through the network, each for all samples.
        gradients: Gradients of energies, each for all samples.
        seconds: Wall time of the run, once it has ended.
    """

    def __init__(self, record: bool = True) -> None:
        self.record = record
        self.entries: list[Entry] = []
        self.nfe: int | Tensor = 0
        self.calls = 0
        self.shared = 0
        self.backwards = 0
        self.gradients = 0
        self.seconds = 0.0

    def begin(
        self, step: int, stage: int, t: float, wanted: Mapping[Branch, Any], batch: int
    ) -> None:
        """Opens the entry of an evaluation of the wanted branches for a batch of samples."""
        self.entries.append(Entry(step, stage, t, tuple(wanted), batch))

    def provided(self, branch: str, provenance: str) -> None:
        """Notes that a policy provided a branch of this evaluation."""
        self.entries[-1].provided[branch] = provenance

    def count(self, batch: int, rows: Tensor | None) -> None:
        """Counts one evaluation for all samples, or for some rows."""
        if rows is None:
            self.nfe = self.nfe + 1
        else:
            added = torch.zeros(batch, dtype=torch.long, device=rows.device)
            self.nfe = added.index_fill_(0, rows, 1) + self.nfe

    def norm(self, term: str, update: Tensor) -> None:
        """Keeps the norm of one term, a root mean square over samples."""
        if self.record and self.entries:
            norms = self.entries[-1].norms
            size = torch.linalg.vector_norm(update)  # of the batch; divided when it is read
            norms[term] = norms[term] + size if term in norms else size

    def total_norm(self) -> Tensor | None:
        """The sum of the norms of the last evaluation, if they were kept."""
        norms = self.entries[-1].norms
        return (
            sum(norms.values(), start=torch.zeros(()))
            if len(norms) > 1
            else next(iter(norms.values()), None)
        )

    def to_dict(self) -> list[dict[str, Any]]:
        """The entries as plain numbers and strings, for JSON."""
        return [
            {
                "step": e.step,
                "stage": e.stage,
                "t": float(e.t) if not isinstance(e.t, Tensor) else e.t.tolist(),
                "branches": e.provenance,
                "norms": e.sizes,
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
            norms = [f"{e.sizes[t]:.3g}" if t in e.norms else "-" for t in terms]
            time = f"{e.t:.4g}" if not isinstance(e.t, Tensor) else "per sample"
            rows.append([str(e.step), time, *marks, *norms])
        widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        nfe = self.nfe if isinstance(self.nfe, int) else self.nfe.double().mean().item()
        cost = f"evaluations per sample: {nfe:g}, network calls: {self.calls}"
        if self.shared:
            cost += f", with a shared trunk: {self.shared}"
        if self.gradients:
            cost += f", backward passes: {self.backwards}, energy gradients: {self.gradients}"
        return "\n".join([*lines, cost])


_MARKS = {"evaluated": "x", "skipped": "-"}
