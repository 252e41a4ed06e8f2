"""Residual CFG: the negative prediction points back to a reference, and costs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import (
    CONTINUOUS,
    Context,
    Guide,
    Policy,
    Predictions,
    Range,
    Rows,
    register,
)
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Run
from fairlead.guidance.policies.rows import check_only, mask
from fairlead.parameters import choose


@register("rcfg", ids=("S064",))
@dataclass(frozen=True)
class ResidualCFG(Policy):
    r"""Puts an analytic prediction that points back to a reference in the negatives' place.

    .. math:: \hat\epsilon = \delta \, (x - \alpha \, x_\mathrm{ref}) / \sigma

    At ``delta = 1`` this is CFG in x0 space with a constant weak prediction,
    ``D = x_ref + w (D_c - x_ref)``. ``self`` refers to the clean samples that are edited,
    ``fl.sample(reference=...)``; ``onetime`` to what each negative branch predicted when it was
    first wanted. Every branch beside the base is treated so.

    * Space: eps; per sample.
    * Cost: for ``n`` steps ``n`` NFE (``self``) or ``n + 1`` (``onetime``) instead of ``2 n``.
    * Neutral: none; ``w = 1`` is conditional for every ``delta``. ``onetime`` with one step and
      ``delta = 1`` is full CFG.
    * Defaults by family: few-step consistency models ``w = 1.2``, ``delta = 1``. The released
      code's recursion on a stock of noise is the same where the consistency model's output is not
      blended with its input.

    Args:
        mode: ``self`` or ``onetime``.
        delta: Damping of the virtual noise, above 0; other values than 1 have no meaning where
            ``alpha = 0``.
        only: Names of the branches that are replaced; none are all beside the base.

    Raises:
        ValueError: A parameter is out of range; ``only`` names the base or an unknown branch;
            ``self`` without a reference (before the first step); ``delta`` other than 1 at
            ``alpha = 0``.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.2) | fl.ResidualCFG("onetime"))
        "cfg(1.2) | rcfg(mode='onetime')"

    Source:
        Kodaira et al. (2023), arXiv:2312.12491, section 3.2.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS

    mode: Literal["self", "onetime"] = "self"
    delta: Annotated[float, Range(0, inf, closed="neither")] = 1.0
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("rcfg", "mode", self.mode, ("self", "onetime"))
        check_only("rcfg", self.only)

    def admit(self, guide: Guide) -> None:
        check_only("rcfg", self.only, guide)

    def check(self, denoiser: Denoiser, run: Run) -> None:
        if self.mode == "self" and run.reference is None:
            raise ValueError(
                "rcfg: mode='self' needs the clean samples that are edited: pass "
                "fl.sample(reference=...), or take mode='onetime'"
            )

    def skip(self, offered: Mapping[Branch, Rows], ctx: Context) -> Mapping[Branch, Rows]:
        mine = {b: r for b, r in offered.items() if not self.only or b.name in self.only}
        if self.mode == "self":
            return mine if ctx.run.reference is not None else {}
        kept = ctx.recall({})
        return {
            b: (mask(rows, ctx.batch) & kept[b][1]).nonzero().flatten()
            for b, rows in mine.items()
            if b in kept
        }

    def fill(self, branch: Branch, predictions: Predictions, ctx: Context) -> tuple[Tensor, str]:
        base = predictions.base
        if self.mode == "self":
            assert ctx.run.reference is not None
            reference = ctx.run.reference.to(base)
        else:
            reference = ctx.recall({})[branch][0]
        if self.delta != 1.0:
            if bool((torch.as_tensor(ctx.alpha) == 0).any()):
                raise ValueError("rcfg: delta must be 1 where alpha = 0; start at a lower level")
            assert ctx.x is not None
            noise = self.delta * ctx.noise(reference)
            reference = (ctx.x - ctx.sigma * noise) / ctx.alpha
        return reference, f"analytic ({self.mode})"

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        if self.mode == "self":
            return
        kept = dict(ctx.recall({}))
        for branch in ctx.offered.get(ctx.place, {}):
            if branch not in ctx.evaluated or (self.only and branch.name not in self.only):
                continue
            value, known = predictions[branch], mask(ctx.evaluated[branch], ctx.batch)
            if branch in kept:
                old, before = kept[branch]
                fresh = (known & ~before).reshape(-1, *[1] * (value.ndim - 1))
                value, known = torch.where(fresh.to(value.device), value, old), known | before
            kept[branch] = (value, known)
        ctx.remember(kept)
