"""Claim of cross-attention maps that are carried from one size to the next."""

import math
from typing import Any

import torch
from torch import Tensor, nn

import fairlead as fl
from fairlead.models.layers import Attention
from fairlead.stages import Stage, sample_stages
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check

SIDE = 8
SHARES = (0.0, 0.4, 0.6, 0.8)


class Repeating(nn.Module):
    """Paints one object where it attends to it; beyond its own size its positions repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Attention("cross")

    @property
    def attention_layers(self) -> dict[str, nn.Module]:
        """One layer that attends to an object and to its background."""
        return {"text.0": self.core}

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The share of attention that the object gets, shaped like `x`; text `(B, 2, 3)`."""
        waves = [torch.cos(2 * math.pi * (torch.arange(n) - 3) / SIDE) for n in x.shape[2:]]
        rows, columns = torch.meshgrid(*waves, indexing="ij")
        q = torch.stack([rows, columns, torch.ones_like(rows)], -1).flatten(0, 1).to(x)
        k = text[:, None].to(x)
        v = torch.tensor([[1.0, 0, 0], [0, 0, 0]]).to(x).expand_as(k)
        seen: Tensor = self.core(q.expand(len(x), 1, *q.shape), k, v)
        return seen[..., 0].reshape(x.shape)


@claim(
    "reuse_maps",
    ids=("S048",),
    claim="A network whose cross-attention repeats an object at a larger size shows it once where "
    "the maps of the smaller size are mixed in.",
    setting="a denoiser that paints its attention to an object, with positions of period 8, at 8x8 "
    "and then 16x16 in two stages of 3 DDIM steps; w_c = 0, 0.4, 0.6, 0.8; share of the brightness "
    "where the 8x8 image, enlarged, is above half of its maximum, in units of that share of the "
    "enlarged image itself; no trained network, since none is at hand that reads a text; the first "
    "run expected (1 - w_c)/4 + w_c, which took one of the four copies to lie there: none does",
    expected="w_c to 0.05",
)
def once() -> Finding:
    """Each share agrees."""
    model = fl.Denoiser(Repeating(), fl.schedules.EDM(), "sample", shape=(1, SIDE, SIDE))
    text = torch.tensor([[[10.0, 10.0, -12.0], [0.0, 0.0, 0.0]]])
    grid = tuple(fl.schedules.EDM().grid(6))
    small = fl.sample(model, {"text": text}, levels=grid[:4], sampler="ddim").x
    large = fl.stages.linear(model(small, 0.002, {"text": text}), (2 * SIDE, 2 * SIDE))
    there = large > large.amax((2, 3), keepdim=True) / 2

    def share(x: Tensor) -> float:
        return float((x * there).sum() / x.sum())

    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for w in SHARES:
        guide = f"none | reuse_maps({w})"
        stages = [Stage(guide, grid[:4], (SIDE, SIDE)), Stage(guide, grid[3:], (16, 16))]
        x = sample_stages(model, {"text": text}, stages=stages).x
        found = share(x) / share(large)
        measured[f"share, w_c = {w:g}"] = found
        checks[f"share, w_c = {w:g}"] = abs(found - w) < 0.05
    return Finding(measured, checks)
