"""Semantic-aware CFG."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, sqrt
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Context, Predictions, Range, Rule, opposed, register
from fairlead.guidance.blur import gaussian_blur
from fairlead.guidance.branch import COND, NULL, Branch, Capture
from fairlead.parameters import choose

EPS = 1e-8


@dataclass(frozen=True)
class Maps(Capture):
    """Attention matrices, mean over heads, `(M, *grid, keys)`, of the wanted resolutions."""

    patterns: str | tuple[str, ...]
    ratio: int

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        denoiser.match_attention("scfg", self.patterns, ("cross",))  # the text is what it is about
        return denoiser.match_attention("scfg", self.patterns, ("cross", "self"))

    def __call__(self, call: Attended) -> Tensor | None:
        height, side = call.spatial[-2], call.grid[-2]
        if not height // 8 <= side <= ceil(height / self.ratio):
            return None
        p = call.probabilities().mean(1)
        return p.reshape(len(p), *call.grid, p.shape[-1])


@register("scfg", ids=("S005",), neutral="ratio=2, low=1.0, high=1.0")
@dataclass(frozen=True)
class SCFG(Rule):
    r"""Evens out guidance over the regions that the words of a text take in the image.

    A pixel ``p`` belongs to the token ``j(p)`` to which the conditional branch attends most there,
    and to the foreground if the null branch does not attend most to its first token. With the
    response ``d(p) = ||y_c(p) - y_u(p)||`` over channels, its mean ``m_j`` over each region and
    ``m_fg`` over the foreground:

    .. math::
        g(p) &= \mathrm{blur}\Bigl(\min\bigl(\mathrm{clamp}(m_\mathrm{fg} / m_{j(p)},
                \mathrm{low}, \mathrm{high}), \; \mathrm{cap} / w\bigr)\Bigr), \\
        D &= D_u + w \, g(p) \, (D_c - D_u)

    Cross-attention ``C`` of each layer is smoothed by self-attention ``S`` (of the layer before it
    of the same grid) as ``(S + S^2 + S^3 + S^4) C / 4``, brought to the finest grid, blurred 3x3
    and divided by its mean over the image, token by token; layers are averaged. For the foreground
    that division comes after the average, of the first token and of the sum of the others.

    * Space: any, since only ratios count; per sample and pixel.
    * Cost: 0 NFE beside ``cfg``, which shares the null branch; attention matrices of the layers.
    * Neutral: ``low = high = 1`` while ``w <= cap``; a response of even magnitude.
    * Defaults by family: Stable Diffusion ``w = 7.5`` as below. Where ``w = 1`` the term before
      it is off, and so is the rule.

    Args:
        layers: Attention layers by name, as for ``pag``: cross-attention and, where there is any,
            self-attention.
        ratio: Size of the sample in the finest grid used; coarser ones are used to 1/8.
        low: Least ``g``.
        high: Largest ``g``.
        cap: Largest ``w g``.
        form: ``paper``; or ``code``, whose series is ``(S + 3 S^2) / 4`` and whose blur is wider
            by ``sqrt(2)``.

    Raises:
        ValueError: A parameter is out of range; ``low`` above ``high``; a pattern names no
            cross-attention layer (lists them); no layer has a wanted grid; there is no network.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.SCFG(ratio=2))
        'cfg(7.5) | scfg(ratio=2)'

    Source:
        Shen, Song, Liu et al. (2024), arXiv:2404.05384.
    """

    reads_text: ClassVar[bool] = True

    layers: str | tuple[str, ...] = "**"
    ratio: int = 4
    low: Annotated[float, Range(0, inf, closed="left")] = 0.8
    high: Annotated[float, Range(0, inf)] = 3.0
    cap: Annotated[float, Range(0, inf, closed="right")] = 15.0
    form: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("scfg", "form", self.form, ("paper", "code"))
        if self.ratio not in (1, 2, 4, 8):
            raise ValueError(f"scfg: ratio must be one of 1, 2, 4, 8, got {self.ratio}")
        if self.low > self.high:
            raise ValueError(f"scfg: low must be at most high = {self.high}, got {self.low}")

    @cached_property
    def maps(self) -> Maps:
        """What is kept of the attention."""
        return Maps(self.layers, self.ratio)

    @property
    def captures(self) -> tuple[tuple[Branch, Capture], ...]:
        return ((COND, self.maps), (NULL, self.maps))

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        found = self.regions(predictions, ctx)
        if found is None:
            found = ctx.recall()  # a policy provided a branch: what was seen last
        if found is None:
            raise ValueError("scfg: there are no attention maps; it needs a network: fl.sample")
        ctx.remember(found)
        null, weight = opposed(predictions.base, update, ctx)
        delta = predictions.base - null
        response = delta.norm(dim=1, keepdim=True)
        region, front = (_upsampled(cells, response) for cells in found)
        g = evening(response, region, front > 0).clamp(self.low, self.high)
        w = weight + 1
        top = self.cap / torch.as_tensor(w, dtype=g.dtype, device=g.device)
        g = torch.where(top > 0, torch.minimum(g, top), g)
        # of g - 1, since the blur of zeros is exactly 0
        return update + w * self.blur(g - 1) * delta

    def blur(self, x: Tensor) -> Tensor:
        """Three taps a side."""
        return gaussian_blur(x, 0.5 if self.form == "paper" else 0.5 * sqrt(2), 3)

    def regions(self, predictions: Predictions, ctx: Context) -> tuple[Tensor, Tensor] | None:
        """The token of each cell, and 1 for foreground, each `(B, 1, F, h, w)`; or no maps."""
        halves = []
        for state in ("cond", "null"):
            kept = [predictions.maps(b, self.maps) for b in predictions if b.state == state]
            maps = next((k for k in kept if k is not None), None)
            if maps is None or ctx.denoiser is None:
                return None
            kinds = ctx.denoiser.attention_layers
            calls = [(kinds[n].kind == "cross", c) for n, layer in maps.items() for c in layer]
            halves.append(self.tokens(calls, len(predictions.base)))
        cond = torch.stack([_evened(c) for c in halves[0]]).mean(0)
        null = torch.stack(halves[1]).mean(0)
        parts = _evened(torch.cat([null[:, :1], null[:, 1:].sum(1, keepdim=True)], 1))
        return cond.argmax(1, keepdim=True), parts.argmax(1, keepdim=True)

    def tokens(self, calls: list[tuple[bool, Tensor]], batch: int) -> list[Tensor]:
        """The maps of the tokens, `(B, L, F, h, w)` for each cross-attention, on one grid.

        Args:
            calls: Attention in the order in which it acted: whether it is of a text, and the
                matrix `(M, *grid, keys)`.
            batch: Number of samples.
        """
        found = []
        for i, (text, cross) in enumerate(calls):
            if not text:
                continue
            flat, (h, w) = cross.flatten(1, -2), cross.shape[-3:-1]
            same = [
                j for j, (t, c) in enumerate(calls) if not t and c.shape[:-1] == cross.shape[:-1]
            ]
            if same:
                s = calls[max((j for j in same if j < i), default=same[0])][1]
                flat = self.series(s.flatten(1, -2), flat)
            found.append(flat.reshape(batch, -1, h, w, flat.shape[-1]).permute(0, 4, 1, 2, 3))
        if not found:
            raise ValueError(
                f"scfg: no cross-attention has a grid of 1/{self.ratio} of the sample's size or "
                "less; choose another ratio"
            )
        h, w = max(f.shape[-2:] for f in found)
        return [self.blur(F.interpolate(f, (f.shape[2], h, w), mode="trilinear")) for f in found]

    def series(self, s: Tensor, c: Tensor) -> Tensor:
        """Cross-attention carried along self-attention."""
        once = s @ c
        if self.form == "code":
            return (once + 3 * (s @ once)) / 4
        total = step = once
        for _ in range(3):
            step = s @ step
            total = total + step
        return total / 4


def evening(response: Tensor, region: Tensor, front: Tensor) -> Tensor:
    """The foreground's mean response over that of the region of each pixel.

    Args:
        response: Its size, `(B, 1, ...)`.
        region: Number of the region of each pixel, likewise.
        front: Whether a pixel is foreground; where none is, the mean is over all.
    """
    flat, own = response.flatten(1), region.flatten(1).long()
    front = front.flatten(1)
    front = front | ~front.any(1, keepdim=True)
    zeros = flat.new_zeros(len(flat), int(own.max()) + 1)
    total = zeros.scatter_add(1, own, flat)
    count = zeros.scatter_add(1, own, torch.ones_like(flat))
    mean = (total / (count + EPS)).gather(1, own)
    fore = (flat * front).sum(1, keepdim=True) / (front.sum(1, keepdim=True) + EPS)
    return (fore / (mean + EPS)).reshape(response.shape)


def _evened(maps: Tensor) -> Tensor:
    """Maps `(B, L, F, h, w)` over their mean."""
    return maps / (maps.mean((2, 3, 4), keepdim=True) + EPS)


def _upsampled(cells: Tensor, like: Tensor) -> Tensor:
    """Cells `(B, 1, F, h, w)` at the size of `(B, 1, ...)`, by nearest neighbours."""
    size = (1,) * (5 - like.ndim) + tuple(like.shape[2:])
    return F.interpolate(cells.to(like.dtype), size, mode="nearest").reshape(like.shape)
