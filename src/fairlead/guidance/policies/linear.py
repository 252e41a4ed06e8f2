"""LinearAG: the null prediction as a linear combination of past ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import (
    CONTINUOUS,
    FINITE,
    Context,
    Guide,
    Policy,
    Predictions,
    Range,
    Rows,
    register,
)
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Run, Weight
from fairlead.guidance.policies.rows import covers, mask, wanted_below


class _Past(NamedTuple):
    """Both noise predictions of a step, and the samples whose second one is known."""

    cond: Tensor
    other: Tensor
    known: Tensor


@register("linear", ids=("S014",), neutral="end=1.0")
@dataclass(frozen=True)
class LinearGuidance(Policy):
    r"""Estimates the null prediction at every second step, and later does without it.

    At the steps ``i = 1, 3, ...`` of the first part

    .. math:: \hat\epsilon_u(x_i) = \sum_{j=0}^{i} b^c_{ij} \, \epsilon_c(x_j)
                                  + \sum_{j=0}^{i-1} b^u_{ij} \, \epsilon_u(x_j)

    with coefficients fitted once (``fl.fit_linear``); an estimate enters the history in place of
    the prediction that was not made. After the share ``end`` of the steps the terms before it are
    off.

    * Space: eps; the coefficients are shared by samples, channels and pixels. They belong to one
      sampler, number of steps, guide and null condition: a changed negative needs a new fit.
    * Cost: 2 and 1 NFE in turn in the first part, then 1: 25 for 20 steps instead of 40. Keeps
      two tensors a step of the first part.
    * Neutral: no coefficients and ``end = 1``.
    * It serves one branch beside the base.

    Args:
        coefficients: For each estimated step in order ``b^c_{i0} .. b^c_{ii}, b^u_{i0} ..
            b^u_{i,i-1}``: 3 numbers for step 1, 7 for step 3, 11 for step 5 and so on.
        end: Share of the steps after which the terms are off; 1 is never.
        steps: Number of steps that the coefficients were fitted for; 0 is not checked.

    Raises:
        ValueError: A parameter is out of range; the number of coefficients belongs to no number
            of steps; the terms before it want no or several branches; a run has another number
            of steps.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.LinearGuidance([-1.0, 1.0, 1.0]))  # keeps the last difference
        'cfg(7.5) | linear(coefficients=[-1.0, 1.0, 1.0])'

    Source:
        Castillo, Kohler, et al. (2023), arXiv:2312.12487, section on LinearAG.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS

    coefficients: Annotated[tuple[float, ...], FINITE] = ()
    end: Annotated[float, Range(0, 1)] = 0.5
    steps: Annotated[int, Range(0, float("inf"), closed="left")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._count() is None:
            raise ValueError(
                "linear: coefficients must be 3 numbers for step 1, 7 for step 3, 11 for step 5 "
                f"and so on (3, 10, 21, 36, ... in all), got {len(self.coefficients)}"
            )

    def admit(self, guide: Guide) -> None:
        wanted = wanted_below(guide)
        if len(wanted) != 1:
            names = ", ".join(repr(b.name) for b in wanted) or "none"
            raise ValueError(f"linear: serves one branch beside the base, got {names}")

    def check(self, denoiser: Denoiser, run: Run) -> None:
        if self.steps and run.steps != self.steps:
            raise ValueError(
                f"linear: the coefficients are for {self.steps} steps, got {run.steps} steps; fit "
                "them anew with fl.fit_linear"
            )

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        return weight if ctx.fraction < self.end else 0.0

    def skip(self, offered: Mapping[Branch, Rows], ctx: Context) -> Mapping[Branch, Rows]:
        past: tuple[_Past, ...] = ctx.recall(())
        step = ctx.step
        if not self._estimates(step) or len(past) != step:
            return {}
        return {b: rows for b, rows in offered.items() if all(covers(p.known, rows) for p in past)}

    def fill(self, branch: Branch, predictions: Predictions, ctx: Context) -> tuple[Tensor, str]:
        past: tuple[_Past, ...] = ctx.recall(())
        seen = [*(p.cond for p in past), ctx.noise(predictions.base), *(p.other for p in past)]
        assert ctx.x is not None
        noise = torch.zeros_like(seen[0])
        for b, eps in zip(self._of(ctx.step), seen, strict=True):
            noise = noise.add(eps, alpha=b)
        return (ctx.x - ctx.sigma * noise) / ctx.alpha, "estimated"

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        past: tuple[_Past, ...] = ctx.recall(())
        offered = ctx.offered.get(ctx.place, {})
        step, last = ctx.step, 2 * (self._count() or 0) - 1
        if len(past) != step or step >= last or len(offered) != 1:
            return
        ((branch, rows),) = offered.items()
        noises = ctx.noise(predictions.base), ctx.noise(predictions[branch])
        ctx.remember((*past, _Past(*noises, mask(rows, ctx.batch))))

    def _count(self) -> int | None:
        """Number of estimated steps, `None` if there is none for so many coefficients."""
        total, count = 0, 0
        while total < len(self.coefficients):
            total += 4 * count + 3
            count += 1
        return count if total == len(self.coefficients) else None

    def _estimates(self, step: int) -> bool:
        return step % 2 == 1 and step < 2 * (self._count() or 0)

    def _of(self, step: int) -> tuple[float, ...]:
        k = (step - 1) // 2
        start = k * (2 * k + 1)  # sum of 4 j + 3 for j < k
        return self.coefficients[start : start + 2 * step + 1]


def regress(cond: Sequence[Tensor], null: Sequence[Tensor], end: float = 0.5) -> tuple[float, ...]:
    """Coefficients of `linear` from the noise predictions of whole trajectories.

    Ordinary least squares in float64 over all samples and dimensions, by a singular value
    decomposition that drops what is below 1e-10 of the largest: designs are rank deficient
    wherever trajectories lie in a small space.

    Args:
        cond: `(B, ...)` of each step, from plain guidance.
        null: The same of the other branch.
        end: Share of the steps that are estimated in turn.
    """
    steps, found = len(cond), list[float]()
    columns = [t.double().flatten() for t in (*cond, *null)]
    for i in range(1, steps, 2):
        if i / steps >= end:
            break
        design = torch.stack([*columns[: i + 1], *columns[steps : steps + i]], dim=1)
        found += truncated(design, columns[steps + i])
    return tuple(found)


def truncated(design: Tensor, target: Tensor, cutoff: float = 1e-10) -> list[float]:
    """The least-squares solution of least norm."""
    q, r = torch.linalg.qr(design)
    u, s, v = torch.linalg.svd(r)
    kept = s > cutoff * s[0]
    part = (u.mT @ (q.mT @ target))[kept] / s[kept]
    solution: list[float] = (v.mT[:, kept] @ part).tolist()
    return solution
