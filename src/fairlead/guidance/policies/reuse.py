"""Feature reuse: attention outputs are extrapolated from the last two that were computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import (
    CONTINUOUS,
    FINITE,
    Context,
    Policy,
    Predictions,
    Range,
    register,
)
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Run
from fairlead.guidance.replacing import Features, Replacement
from fairlead.layers import with_parameters
from fairlead.parameters import choose


class _Kept(NamedTuple):
    """What a module returned at a computed step, for the whole batch, and which rows it has."""

    step: int
    features: Features
    known: Tensor


@dataclass(frozen=True)
class _Extrapolated(Replacement):
    """The replacement of one branch, `branch` being the one without it."""

    policy: "FeatureReuse"
    branch: Branch

    def modules(self, denoiser: Denoiser) -> dict[str, nn.Module]:
        return self.policy.modules(denoiser)

    def provide(self, name: str, rows: Sequence[int], ctx: Context) -> Features | None:
        run = ctx.run
        if not self.policy.reuses(run) or any(
            branch.name == self.branch.name for branch in ctx.plan.captures
        ):
            return None
        kept: list[_Kept] = run.recall((self, name), [])
        picked, due = list(rows), self.policy.computed_before(run)
        if len(due) < 2 or [k.step for k in kept] != due:
            return None
        if not all(bool(k.known[picked].all()) for k in kept):
            return None
        new, old = kept
        g = self.policy.factor(run)
        run.report.provided(self.branch.name, "features reused")
        return _both(new.features, old.features, lambda a, b: torch.lerp(b, a, 1 + g)[picked])

    def observe(self, name: str, features: Features, rows: Sequence[int], ctx: Context) -> None:
        if ctx.run.stage == 0 and not self.policy.reuses(ctx.run):
            ctx.scratch.setdefault((self, name), []).append((list(rows), features))


@register("reuse", ids=("S019",), neutral="start=1.0")
@dataclass(frozen=True)
class FeatureReuse(Policy):
    r"""Runs self-attention at some steps, and extrapolates what it returns in between.

    With ``F_new`` and ``F_old`` the last two outputs of a layer that were computed, for the same
    branch, a step that is skipped takes

    .. math:: F = F_\mathrm{new} + g \, (F_\mathrm{new} - F_\mathrm{old})

    Layers are whole self-attention modules, projections included; they do not run. A branch
    that was not evaluated at both steps (``cache`` left it out) runs whole.

    * Space: features; no numbers of the guide change. Every branch has its own features.
    * Cost: the same NFE, each cheaper by the share of the layers; keeps two outputs a layer and
      branch for the trajectory.
    * Neutral: ``start = 1``. ``g = 0`` is plain reuse of the last output.
    * Defaults by family: as here in Latte (``start = 0.3``) and in the diffusers hook; Open-Sora
      1.2 ``reuse(start=7/30, g=1.035, growth='linear')``; CogVideoX ``every = 3``.

    Args:
        every: Steps from one computation to the next: steps ``1, 1 + every, ...`` compute.
        start: Share of the steps, in [0, 1], in which all is computed.
        g: How far the change is carried on.
        growth: ``constant``; or ``linear``, from 0 where ``start`` ends to ``g`` in the last step.
        layers: Self-attention layers by name, as for ``pag``; empty is all of them.

    Raises:
        ValueError: A parameter is out of range; the network has no such layers (lists them).

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.Cache() | fl.FeatureReuse(start=0.2))
        'cfg(7.5) | cache() | reuse(start=0.2)'

    Source:
        Lv, Si, Song, Yang, Qiao, Liu, Wong (2024), arXiv:2410.19355; released scripts.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS

    every: Annotated[int, Range(1, inf, closed="left")] = 2
    start: Annotated[float, Range(0, 1)] = 0.3
    g: Annotated[float, FINITE] = 0.5
    growth: Literal["constant", "linear"] = "constant"
    layers: str | tuple[str, ...] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("reuse", "growth", self.growth, ("constant", "linear"))

    def check(self, denoiser: Denoiser, run: Run) -> None:
        self.modules(denoiser)

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        added = _Extrapolated(self, branch)
        return replace(branch, perturbations=(*branch.perturbations, added))

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        for (replacement, name), pieces in ctx.scratch.items():
            if isinstance(replacement, _Extrapolated) and replacement.policy == self:
                kept: list[_Kept] = ctx.run.recall((replacement, name), [])
                new = _joined(pieces, ctx.batch, ctx.run.step)
                ctx.run.remember((replacement, name), [new, *kept[:1]])

    def modules(self, denoiser: Denoiser) -> dict[str, nn.Module]:
        """The attention modules with their projections, by the layer's name.

        Raises:
            ValueError: The network has no such layers.
        """
        known = denoiser.attention_layers
        names = {layer.module: name for name, layer in known.items()}
        patterns = self.layers or tuple(n for n, a in known.items() if a.kind != "cross")
        chosen = denoiser.match_attention("reuse", patterns or "*", ("self", "joint"))
        return {names[a.module]: with_parameters(denoiser.network, a.module) for a in chosen}

    def reuses(self, run: Run, step: int | None = None) -> bool:
        """Whether a step, by default the current one, takes extrapolated features."""
        at = run.place if step is None else step
        return at / run.steps >= self.start and at % self.every != 0

    def computed_before(self, run: Run) -> list[int]:
        """The last two steps that computed, the later one first."""
        steps = (s for s in range(run.step - 1, -1, -1) if not self.reuses(run, s))
        return [s for s, _ in zip(steps, range(2), strict=False)]

    def factor(self, run: Run) -> float:
        """`g` at a step."""
        if self.growth == "constant":
            return self.g
        first = self.start * run.steps
        return self.g * (run.step + 1 - first) / (run.steps - first)


def _joined(pieces: list[tuple[list[int], Features]], batch: int, step: int) -> _Kept:
    """The pieces of a step as one batch; rows that are missing stay zero."""
    known = torch.zeros(batch, dtype=torch.bool)
    first = pieces[0][1]

    def join(column: list[tuple[list[int], Tensor]]) -> Tensor:
        like = column[0][1]
        whole = like.new_zeros((batch, *like.shape[1:]))
        for rows, value in column:
            whole[rows] = value
            known[rows] = True
        return whole

    if isinstance(first, tuple):
        columns = [[(r, v[i]) for r, v in pieces] for i in range(len(first))]
        return _Kept(step, tuple(map(join, columns)), known)
    return _Kept(step, join([(r, v) for r, v in pieces if isinstance(v, Tensor)]), known)


def _both(a: Features, b: Features, change: Any) -> Features:
    if isinstance(a, tuple):
        return tuple(change(x, y) for x, y in zip(a, b, strict=True))
    made: Tensor = change(a, b)
    return made
