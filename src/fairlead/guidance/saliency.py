"""Where a prediction responds to its condition: saliency maps, and terms that choose by them."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.guidance.algebra import (
    FINITE,
    Context,
    Difference,
    Gains,
    Place,
    Predictions,
    Term,
)
from fairlead.guidance.branch import COND, NULL, Branch
from fairlead.guidance.context import Planned, Weight, magnitude

POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}


def saliency(response: Tensor, pool: int = 4) -> Tensor:
    """The size of a response at each position, smoothed: `(B, C, *size)` to `(B, 1, *size)`.

    The mean over channels of `|response|`, averaged over windows of `pool` with stride 1 and one
    row of zeros around, and resized to where it came from. A vector `(B, d)` has `d` positions of
    one channel. A side shorter than the window minus 2 is not smoothed.
    """
    size = response.abs()
    size = size[:, None] if size.ndim == 2 else size.mean(1, keepdim=True)
    extent = size.shape[2:]
    if pool > 1 and min(extent) + 2 >= pool:
        # padded here, as pooling of videos asks that each side takes a window without
        smooth = POOLS[len(extent)](F.pad(size, (1, 1) * len(extent)), pool, stride=1)
        size = F.interpolate(smooth, extent, mode=INTERPOLATIONS[len(extent)])
    return size


def spatial_softmax(size: Tensor, k: float) -> Tensor:
    """`softmax(k size)` over all positions: maps of different models become comparable."""
    return (k * size).flatten(1).softmax(1).reshape(size.shape)


@dataclass(frozen=True)
class Fusion(Term):
    """Takes the guided prediction of another model where that model responds more.

    Subclasses name their two models by the branches towards and away from which each is guided;
    see `MagicFusion` for the equation.
    """

    affine: ClassVar[bool] = False
    strength: ClassVar[float] = 1.0

    w: Annotated[float, FINITE]

    @property
    def own(self) -> tuple[Branch, Branch]:
        """Towards and away from, in the model that is sampled."""
        return COND, NULL

    @property
    @abstractmethod
    def other(self) -> tuple[Branch, Branch]:
        """Towards and away from, in the other model."""

    @property
    def negative(self) -> Branch:
        return self.other[0]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The guided prediction of the other model minus the own."""
        w = self.w
        return ((1.0, self.other[0], self.own[0]), (w - 1, *self.other), (1 - w, *self.own))

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        share = self.weigh(self.strength_at(ctx), ctx, gains, gain)
        if isinstance(share, float) and share == 0.0:
            return
        planned: list[Planned] = [
            (share * cast(float, strength), self.seen(a, ctx, gains), self.seen(b, ctx, gains))
            for strength, a, b in self.differences
        ]
        ctx.plan.enter(place, planned)
        ctx.plan.affine &= self.wholly(ctx)
        if not self.wholly(ctx):  # a mask looks at all, whatever their weights
            ctx.plan.look_at(ctx.plan.base)
            for _, a, b in planned[1:]:
                ctx.plan.look_at(a)
                ctx.plan.look_at(b)

    def wholly(self, ctx: Context) -> bool:
        """Whether the other model is taken everywhere."""
        return False

    @abstractmethod
    def keep(self, own: Tensor, other: Tensor) -> Tensor:
        """Where the own model is kept, from the two responses in noise space: 1 or 0."""

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        planned = ctx.plan.terms.get(place)
        if planned is None:
            return None, 0.0
        values = predictions.values_by_branch
        update = torch.zeros_like(predictions.base)
        total: Weight = 0.0
        for weight, positive, negative in planned:
            update = update + weight * (values[positive] - values[negative])
            total = total + magnitude(weight)
        if not self.wholly(ctx):
            scale = self.w * magnitude(ctx.alpha / ctx.sigma)
            other, own = (scale * (values[a] - values[b]) for _, a, b in planned[1:])
            update = update * (1 - self.keep(own, other))
        if ctx.run.report.record:
            ctx.run.report.norm(self.label, update)
        return update, total


def more_salient(
    own: Tensor, other: Tensor, pool: int, k: float = 1.0, k_other: float = 1.0
) -> Tensor:
    """1 where the first of two responses is at least as salient, `(B, 1, *size)` or `(B, d)`."""
    first, second = (
        spatial_softmax(saliency(r, pool), strength) for r, strength in ((own, k), (other, k_other))
    )
    mask = (first >= second).to(own.dtype)
    return mask[:, 0] if own.ndim == 2 else mask
