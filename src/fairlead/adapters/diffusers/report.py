"""What steering a pipeline did."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fairlead.guidance.report import Entry, Report


@dataclass
class SteeringReport:
    """The log of the last call of a steered pipeline.

    Attributes:
        guide: Text of the guide.
        pipeline: Class of the pipeline.
        layout: Which rows or calls of the pipeline are which branch.
        inert: Arguments of the pipeline that the guide stands in for, and their values.
    """

    guide: str
    pipeline: str
    layout: str = ""
    inert: dict[str, Any] = field(default_factory=dict)
    read: Callable[[], Report] = field(default=Report, repr=False)

    @property
    def log(self) -> Report:
        """Branches, evaluations and norms, step by step; norms are lengths in x0."""
        return self.read()

    @property
    def entries(self) -> list[Entry]:
        """One entry a step."""
        return self.log.entries

    @property
    def nfe(self) -> int | Tensor:
        """How often the network was evaluated for a sample; a number, or one a sample `(B,)`."""
        return self.log.nfe

    @property
    def calls(self) -> int:
        """Calls of the network."""
        return self.log.calls

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        nfe = self.nfe
        return {
            "guide": self.guide,
            "pipeline": self.pipeline,
            "layout": self.layout,
            "inert": {name: _plain(value) for name, value in self.inert.items()},
            "nfe": nfe.tolist() if isinstance(nfe, Tensor) else nfe,
            "calls": self.calls,
            "steps": self.log.to_dict(),
        }

    def __str__(self) -> str:
        head = [f"{self.pipeline} under {self.guide}"]
        if self.layout:
            head.append(f"its own branches: {self.layout}")
        if self.inert:
            head.append(f"without effect: {', '.join(self.inert)}")
        return "\n".join([*head, "", str(self.log)])


def _plain(value: Any) -> Any:
    known = isinstance(value, (bool, int, float, str)) or value is None
    return value if known else repr(value)
