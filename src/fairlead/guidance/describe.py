"""What a guide is made of and what it costs, before a run and after."""

from dataclasses import dataclass
from typing import Any

from fairlead.guidance.algebra import Guide, Rule, Term
from fairlead.guidance.branch import COND, Branch
from fairlead.guidance.report import Report


@dataclass(frozen=True)
class Description:
    """A guide taken apart; `str()` is for people, `to_dict()` for machines.

    Attributes:
        guide: Its text.
        coefficients: Coefficient of each branch in the linear part, under no schedule; they add
            up to 1.
        parts: Kind and text of every node, left to right.
        nfe: Evaluations a step under no schedule.
        report: The log of a run, if there was one.
    """

    guide: str
    coefficients: dict[str, float | list[float]]
    parts: list[tuple[str, str]]
    nfe: int
    report: Report | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "guide": self.guide,
            "branches": self.coefficients,
            "parts": [{"kind": k, "text": t} for k, t in self.parts],
            "nfe": self.nfe,
            "run": self.report.to_dict() if self.report else None,
        }

    def __str__(self) -> str:
        lines = [self.guide, ""]
        width = max(len(n) for n in self.coefficients)
        for name, value in self.coefficients.items():
            shown = f"{value:+g}" if isinstance(value, float) else str(value)
            lines.append(f"  branch {name.ljust(width)}  {shown}")
        lines += [f"  {kind} {text}" for kind, text in self.parts if kind != "term"]
        lines.append(f"  evaluations a step: {self.nfe}, fewer where a schedule or policy is off")
        if self.report is not None:
            lines += ["", str(self.report)]
        return "\n".join(lines)


def describe(guide: Guide, report: Report | None = None) -> Description:
    """Takes a guide apart; with the report of a run also what happened at each step."""
    total: dict[Branch, Any] = {COND: 1.0}
    reads: set[Branch] = set()
    parts = []
    for node in guide.nodes():
        parts.append(("gradient" if getattr(node, "gradient", False) else node.kind, str(node)))
        if isinstance(node, Term):
            for strength, positive, negative in node.differences:
                for branch, sign in ((positive, 1.0), (negative, -1.0)):
                    total[branch] = _add(total.get(branch, 0.0), sign, strength)
                if node.claims_renoise:
                    reads.add(negative)
        elif isinstance(node, Rule):
            reads |= {COND, *node.needs}
    evaluated = [b for b, c in total.items() if b in reads or c != 0.0]
    return Description(
        str(guide),
        {b.name: total[b] for b in evaluated},
        parts,
        len(evaluated),
        report,
    )


def _add(total: Any, sign: float, strength: float | tuple[float, ...]) -> Any:
    if isinstance(strength, tuple) or isinstance(total, list):
        size = len(strength) if isinstance(strength, tuple) else len(total)
        old = total if isinstance(total, list) else [total] * size
        new = strength if isinstance(strength, tuple) else (strength,) * size
        return [o + sign * n for o, n in zip(old, new, strict=True)]
    return total + sign * strength
