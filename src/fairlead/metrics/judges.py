"""May the judge be believed? Success is scored by judges that did not guide."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairlead.energy.base import Judge, pick, whole
from fairlead.metrics.bootstrap import Estimate, mean_interval


@dataclass(frozen=True)
class JudgeReport:
    """Success of samples by the judge that guided and by judges that did not.

    Attributes:
        guiding: Share of samples that the guiding judge assigns to the class asked for.
        independent: The same by each other judge, by name.
        gaps: `guiding` less each of them, sample by sample.
        confidence: Mean probability that the guiding judge gives the class.
    """

    guiding: Estimate
    independent: dict[str, Estimate]
    gaps: dict[str, Estimate]
    confidence: Estimate

    @property
    def success(self) -> float:
        """The success to rank by, the least that an independent judge finds."""
        return min(v.value for v in self.independent.values())

    @property
    def gap(self) -> float:
        """By how much the guiding judge flatters the samples, at the most."""
        return max(v.value for v in self.gaps.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""

        def plain(e: Estimate) -> dict[str, float]:
            return {"value": e.value, "low": e.low, "high": e.high}

        return {
            "guiding": plain(self.guiding),
            "independent": {k: plain(v) for k, v in self.independent.items()},
            "gaps": {k: plain(v) for k, v in self.gaps.items()},
            "confidence": plain(self.confidence),
        }

    def __str__(self) -> str:
        def shown(e: Estimate) -> str:
            return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"

        lines = [f"guiding judge      {shown(self.guiding)}  (does not count)"]
        for name, value in self.independent.items():
            lines.append(f"{name:<18} {shown(value)}  gap {shown(self.gaps[name])}")
        return "\n".join(lines)


def judge_report(
    x: Tensor,
    label: int | Tensor | list[int],
    guiding: Judge,
    independent: Mapping[str, Judge],
    *,
    chunk: int = 256,
) -> JudgeReport:
    """Scores samples by the judge that guided and by others.

    Args:
        x: `(n, ...)` clean samples.
        label: The classes that were asked for, one for all or `(n,)`.
        guiding: The judge that guided.
        independent: Judges that did not, by name; at least one.
        chunk: Samples at a time.

    Raises:
        ValueError: There is no independent judge, or the guiding one is among them.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
        >>> judge = fl.energy.Posterior(p, 1)
        >>> other = fl.energy.Classifier(lambda z: torch.cat([-z, z], 1), 1)
        >>> report = fl.metrics.judge_report(torch.ones(4, 1), 1, judge, {"other": other})
        >>> report.success, report.gap
        (1.0, 0.0)
    """
    if not independent:
        raise ValueError(
            "judge_report: success is scored by judges that did not guide; give at least one in "
            "independent={...}"
        )
    for name, judge in independent.items():
        if judge is guiding:
            raise ValueError(f"judge_report: {name!r} is the judge that guided")
    wanted = torch.as_tensor(whole("judge_report", label)).expand(len(x))

    def found(judge: Judge) -> Tensor:
        with torch.no_grad():
            return torch.cat([judge.log_probs(part) for part in torch.split(x, chunk)])

    own = found(guiding)
    hits = (own.argmax(1) == wanted).double()
    others = {k: (found(j).argmax(1) == wanted).double() for k, j in independent.items()}
    return JudgeReport(
        mean_interval(hits),
        {k: mean_interval(v) for k, v in others.items()},
        {k: mean_interval(hits - v) for k, v in others.items()},
        mean_interval(pick("judge_report", own, wanted).double().exp()),
    )
