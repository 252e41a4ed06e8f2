"""Cross-attention maps of the stage before, mixed into those of a larger size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import CONTINUOUS, Policy, Predictions, Range, register
from fairlead.guidance.branch import AttentionPerturbation, Branch
from fairlead.guidance.context import Context, Run
from fairlead.guidance.resample import along, resize


@dataclass(frozen=True)
class Mixed(AttentionPerturbation):
    """Attention to a text under a map that is partly an earlier one; the last step is noted.

    `key` says whose maps they are; `notes` whether this branch writes them.
    """

    patterns: str | tuple[str, ...]
    w: float
    key: str
    notes: bool

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("reuse_maps", self.patterns, ("cross",))

    def __call__(self, call: Attended, rows: Sequence[int], ctx: Context) -> Tensor:
        out = call.attend()
        if call.index:  # an image prompt, which has no map of its own
            return out
        if len(call.grid) != 2 or len(call.q) != len(rows):
            raise ValueError(f"reuse_maps: {call.layer.name!r} attends over several frames")
        run = ctx.run
        if self.notes and run.stage == 0 and run.step == len(run.levels) - 2:
            seen = call.probabilities().mean(1).transpose(1, 2)  # over heads; (M, L, N)
            pieces = ctx.scratch.setdefault(("maps", self.key), [])
            pieces.append((list(rows), seen.reshape(*seen.shape[:2], *call.grid)))
        kept = _before(self.key, run)
        if kept is None:
            return out
        if kept.shape[1] != call.k.shape[-2]:
            raise ValueError(
                f"reuse_maps: the text has {call.k.shape[-2]} tokens, and in the stage before it "
                f"had {kept.shape[1]}"
            )
        own = _resized(kept[list(rows)], call.grid).flatten(2).transpose(1, 2)[:, None]
        own = self.w * own.to(call.v)
        share = own.sum(-1, keepdim=True)  # 0 for a sample that was not evaluated there
        mixed: Tensor = (1 - share) * out + own @ call.v
        return mixed


@register("reuse_maps", ids=("S048",), neutral="0.0")
@dataclass(frozen=True)
class MapReuse(Policy):
    r"""Mixes the cross-attention of the stage before into that of a larger size.

    With ``A`` the attention matrix of a layer and ``A'`` the mean one of the stage before, the
    layer returns

    .. math:: (1 - w_c) \, A V + w_c \, A' V

    ``A'`` is the mean over heads and layers of a grid, and over the grids resized to the finest
    of them, at the last step of the stage before; each layer resizes it linearly to its own grid,
    so its rows still add up to 1. Every condition state has maps of its own. It stands in the
    guide of every stage: in the first, and in an ordinary run, it only takes notes.

    * Cost: 0 NFE; explicit attention to the text at one step, and one further product a layer.
    * Neutral: ``w_c = 0``; a run of one stage.
    * Defaults by family: 0.4 to 0.8 (SDXL 0.6, 0.8 in the example of the authors' code, SD 2.1 0.4
      to 0.6).

    Args:
        w: ``w_c`` in [0, 1].
        layers: Cross-attention layers by name, as for ``pag``.

    Raises:
        ValueError: A parameter is out of range; a pattern names no layer (lists them); it stands
            inside a sum; the tokens of a layer form no grid of an image; the text has another
            length than in the stage before.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.MapReuse(0.6))
        'cfg(7.5) | reuse_maps(0.6)'

    Source:
        Zhang, Li, Zhang (2024), arXiv:2410.18410; means from the authors' code, which resizes the
        matrix over its rows and columns and not over the grid.
    """

    domains: ClassVar[frozenset[str]] = CONTINUOUS
    reads_text: ClassVar[bool] = True

    w: Annotated[float, Range(0, 1)]
    layers: str | tuple[str, ...] = "**"

    def check(self, denoiser: Denoiser, run: Run) -> None:
        denoiser.match_attention("reuse_maps", self.layers, ("cross",))

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        if not self.w:
            return branch
        key = f"maps {ctx.place} {branch.state} {branch.nulled} {branch.taken} {branch.model}"
        notes = not any(isinstance(p, AttentionPerturbation) for p in branch.perturbations)
        within = Mixed(self.layers, self.w, key, notes)
        return replace(branch, perturbations=(*branch.perturbations, within))

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        for (what, key), pieces in ctx.scratch.items():
            if what == "maps":
                carried = ctx.run.carried
                if key in carried:
                    carried[f"older {key}"] = carried[key]
                carried[key] = _mean(pieces, ctx.batch)
                carried[f"step of {key}"] = torch.tensor(ctx.run.step)


def _before(key: str, run: Run) -> Tensor | None:
    """The maps of the stage before: not those of this step, which a solver may evaluate twice."""
    fresh = key in run.carried and int(run.carried[f"step of {key}"]) == run.step
    return run.carried.get(f"older {key}" if fresh else key)


def _mean(pieces: list[tuple[list[int], Tensor]], batch: int) -> Tensor:
    """The mean of maps `(M, L, h, w)` over layers of a grid and then over grids, `(B, L, H, W)`."""
    by_grid: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for rows, seen in pieces:
        shape = (batch, *seen.shape[1:])
        total, count = by_grid.setdefault(
            tuple(seen.shape[2:]), (seen.new_zeros(shape), seen.new_zeros(batch, 1, 1, 1))
        )
        total[rows] += seen
        count[rows] += 1
    finest = max(by_grid, key=lambda grid: grid[0] * grid[1])
    means = [_resized(total / count.clamp(min=1), finest) for total, count in by_grid.values()]
    return torch.stack(means).mean(0)


def _resized(maps: Tensor, grid: Sequence[int]) -> Tensor:
    sizes = iter(grid)
    return along(maps, lambda n: resize(n, next(sizes)))
