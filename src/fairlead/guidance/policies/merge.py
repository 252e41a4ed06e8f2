"""Importance-based token merging."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, inf
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.guidance.algebra import Context, Place, Policy, Predictions, Range, register
from fairlead.guidance.branch import AttentionPerturbation, Branch
from fairlead.guidance.context import Run
from fairlead.parameters import choose

BONUS = 1e5
"""What a token outside the pool gains over every similarity, so that it is merged first."""


class Matching(NamedTuple):
    """Which tokens are merged into which: `(M, ...)` indices of tokens.

    Attributes:
        merged: Those that are merged, `(M, r)`.
        into: Which of `kept` each is merged into, `(M, r)`.
        alone: Those that stay as they are.
        kept: Those that others may be merged into.
    """

    merged: Tensor
    into: Tensor
    alone: Tensor
    kept: Tensor

    def merge(self, tokens: Tensor, *, mean: bool = True) -> Tensor:
        """Tokens `(M, heads, N, d)` as `[alone, kept]`, the kept ones averaged with the merged."""
        kept = _take(tokens, self.kept)
        if mean:
            index = self.into[:, None, :, None].expand(-1, tokens.shape[1], -1, tokens.shape[-1])
            kept = kept.scatter_reduce(2, index, _take(tokens, self.merged), "mean")
        return torch.cat([_take(tokens, self.alone), kept], 2)

    def unmerge(self, tokens: Tensor) -> Tensor:
        """The whole sequence again: merged tokens get a copy of what they were merged into."""
        first = self.alone.shape[1]
        alone, kept = tokens[:, :, :first], tokens[:, :, first:]
        parts = torch.cat([alone, kept, _take(kept, self.into)], 2)
        order = torch.cat([self.alone, self.kept, self.merged], 1).argsort(1)
        return _take(parts, order)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(
        2, index[:, None, :, None].expand(-1, tokens.shape[1], -1, tokens.shape[3])
    )


def pooled(importance: Tensor, noise: Tensor, size: int, kept: int) -> tuple[Tensor, Tensor]:
    """A pool of the most important tokens, ties at random, and tokens drawn from it.

    Args:
        importance: `(M, N)`.
        noise: Two independent draws, `(2, M, N)`.
        size: Tokens in the pool.
        kept: Tokens drawn from it without replacement.

    Returns:
        Masks of the pool and of the drawn tokens, `(M, N)`.
    """
    mixed = noise[0].argsort(1)
    ranked = mixed.gather(
        1, importance.gather(1, mixed).argsort(dim=1, descending=True, stable=True)
    )
    pool = torch.zeros_like(importance, dtype=torch.bool).scatter(1, ranked[:, :size], True)
    drawn = noise[1].masked_fill(~pool, inf).argsort(1)[:, :kept]
    return pool, torch.zeros_like(pool).scatter(1, drawn, True)


def match(
    features: Tensor,
    pool: Tensor,
    kept: Tensor,
    count: int,
    similarity: Literal["cosine", "euclidean"] = "cosine",
) -> Matching:
    """Merges the tokens that are most like a kept one, those outside the pool first.

    Args:
        features: What is compared, `(M, N, d)`.
        pool: Mask of the important tokens, `(M, N)`.
        kept: Mask of the tokens that are merged into, as many in every row.
        count: Number of tokens to merge.
        similarity: The cosine, or the negative distance.
    """
    number = int(kept[0].sum())
    order = kept.int().argsort(dim=1, stable=True)
    others, targets = order[:, : order.shape[1] - number], order[:, order.shape[1] - number :]
    rows = torch.arange(len(features), device=features.device)[:, None]
    if similarity == "cosine":
        unit = F.normalize(features, dim=-1)
        alike = unit[rows, others] @ unit[rows, targets].transpose(1, 2)
    else:
        wide = features.to(working_dtype(features))
        alike = -torch.cdist(wide[rows, others], wide[rows, targets])
    best, nearest = alike.max(-1)
    best = best + BONUS * ~pool.gather(1, others)
    ranked = best.argsort(dim=1, descending=True, stable=True)
    merged, alone = ranked[:, :count], ranked[:, count:]
    return Matching(
        others.gather(1, merged), nearest.gather(1, merged), others.gather(1, alone), targets
    )


def cells(noise: Tensor, grid: tuple[int, ...]) -> Tensor:
    """One token at random of each 2x2 cell of the grid, as a mask `(M, N)`."""
    h, w = grid[-2:]
    image = noise.reshape(-1, 1, h, w)
    _, index = F.max_pool2d(image, (min(2, h), min(2, w)), return_indices=True)
    mask = torch.zeros(len(image), h * w, dtype=torch.bool, device=noise.device)
    return mask.scatter(1, index.flatten(1), True).reshape(noise.shape)


@dataclass(frozen=True)
class Merged(AttentionPerturbation):
    """Self-attention among fewer tokens."""

    patterns: str | tuple[str, ...]
    ratio: float
    pool: float
    mean: bool
    place: Place
    similarity: Literal["cosine", "euclidean"] = "cosine"
    cells: bool = False

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("merge", self.patterns, ("self",))

    def __call__(self, call: Attended, rows: Sequence[int], ctx: Context) -> Tensor:
        n = call.k.shape[-2]
        count, number = floor(self.ratio * n), n // 4
        if not count or not number:
            return call.attend()
        fold = len(call.q) // len(rows)
        like = torch.empty(len(rows), 2 * n, device=call.q.device)
        noise = ctx.normal(like, f"merge {call.layer.name}", rows).reshape(-1, 2, n)
        noise = noise.repeat_interleave(fold, 0).transpose(0, 1)
        importance: Tensor | None = ctx.run.recall((self.place, ""), None)
        if importance is None or self.cells:
            kept = cells(noise[0], call.grid)
            pool = torch.ones_like(kept)
            count = min(count, n - int(kept[0].sum()))
        else:
            seen = importance[list(rows)].to(call.q.device)
            if len(call.grid) > 2:
                seen = F.adaptive_avg_pool3d(seen, (call.grid[0], call.grid[1], call.grid[2]))
            else:
                seen = F.adaptive_avg_pool2d(seen, (call.grid[-2], call.grid[-1]))
            seen = seen.reshape(-1, n)
            seen = seen.repeat_interleave(len(call.q) // len(seen), 0)
            size = max(number, min(n, floor((n - count) * self.pool)))
            pool, kept = pooled(seen, noise, size, number)
        keys = call.k.transpose(1, 2).flatten(2)
        features = keys if call.given is None else call.given
        found = match(features, pool, kept, count, self.similarity)
        q, k, v = (found.merge(t, mean=self.mean) for t in (call.q, call.k, call.v))
        return found.unmerge(call.attend(q, k, v))


@register("merge", ids=("S034",), neutral="0.0")
@dataclass(frozen=True)
class TokenMerging(Policy):
    r"""Self-attention among fewer tokens, sparing those that guidance speaks about.

    Of ``N`` tokens of a layer, ``r = floor(ratio N)`` are merged. Importance is the response of
    the last step, ``I = mean_channels |y_c - y_u|``, averaged over the area of each token. A
    quarter of the tokens is drawn at random from the ``floor((N - r) pool)`` most important ones.
    Every other token may be merged into the drawn one that is most like it, those outside the
    pool first, then the most alike. Merged tokens share the mean of their queries, keys and
    values, and get a copy of its output. In the first step, which has no response yet, one token
    of each 2x2 cell is drawn.

    All branches of a sample draw the same tokens; where no null branch was evaluated the last
    response counts. Queries, keys and values are merged, which is the same as merging what a
    layer is given where its projections are linear. Tokens are compared as the layer is given
    them, or by their keys where it is called with queries, keys and values alone.

    * Cost: NFE as before; attention costs ``(1 - ratio)^2`` and the matching ``N^2 / 4``.
    * Neutral: ``ratio = 0``.
    * Defaults by family: Stable Diffusion 2 ``ratio = 0.7``, the layers of the finest grid,
      ``prune = 2``, ``cells = True``; PixArt ``ratio = 0.5``, ``pool = 1``, ``prune = 4``,
      ``similarity = "euclidean"``.

    Args:
        ratio: Share of the tokens that is merged, in [0, 0.75].
        pool: Size of the pool in units of the tokens that are left, 1 or more.
        prune: First steps in which merged tokens are left out instead of averaged in.
        layers: Self-attention layers by name, as for ``pag``.
        similarity: ``cosine``, or ``euclidean``: the negative distance.
        cells: Draw one token of each 2x2 cell in all of the ``prune`` steps, as the authors' code
            for U-Nets does, and not in the first step alone.

    Raises:
        ValueError: A parameter is out of range; a pattern names no layer (lists them); it stands
            inside a sum; the tokens of a layer form no grid.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.TokenMerging(0.5))
        'cfg(7.5) | merge(0.5)'

    Source:
        Wu, Xu, Le, Samaras (2024), arXiv:2411.16720.
    """

    ratio: Annotated[float, Range(0, 0.75)]
    pool: Annotated[float, Range(1, inf, closed="left")] = 1.4
    prune: Annotated[int, Range(0, inf, closed="left")] = 2
    layers: str | tuple[str, ...] = "**"
    similarity: Literal["cosine", "euclidean"] = "cosine"
    cells: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("merge", "similarity", self.similarity, ("cosine", "euclidean"))

    def check(self, denoiser: Denoiser, run: Run) -> None:
        denoiser.match_attention("merge", self.layers, ("self",))

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        if not self.ratio:
            return branch
        mean = ctx.run.step >= self.prune
        by_cells = self.cells and not mean
        within = Merged(
            self.layers, self.ratio, self.pool, mean, ctx.place, self.similarity, by_cells
        )
        return replace(branch, perturbations=(*branch.perturbations, within))

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        others = [b for b in predictions if b.state != "cond"]
        if others and predictions.base_branch in predictions.values_by_branch:
            response = predictions.base - predictions[others[0]]
            ctx.remember(response.abs().mean(1))
