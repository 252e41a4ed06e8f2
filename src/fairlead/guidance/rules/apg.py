"""Adaptive projected guidance."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from torch import Tensor

from fairlead.guidance.algebra import (
    FINITE,
    Context,
    Predictions,
    Range,
    Rule,
    norm,
    project,
    register,
)
from fairlead.guidance.geometry import over_token
from fairlead.guidance.spaces import Space, check_space, in_space
from fairlead.parameters import choose

FORMS = ("paper", "from_null", "one_more")


@register("apg", ids=("S016",), neutral="eta=1.0")
@dataclass(frozen=True)
class APG(Rule):
    r"""Drops the part of the update that only makes the prediction longer.

    That part saturates images at high scales. With ``W`` the total weight of the terms
    before the rule, ``delta = update / W``, and ``m = 0`` when a trajectory starts:

    .. math::
        m &\gets \delta + \beta m, \qquad
        \delta \gets m \, \min(1, r / \lVert m \rVert), \\
        D &= D_c + W (\delta_\perp + \eta \, \delta_\parallel), \qquad
        \delta_\parallel = D_c \, \langle \delta, D_c \rangle / \lVert D_c \rVert^2 .

    * Space: x0 unless ``space`` says otherwise; per sample, over all dimensions but the first.
    * Cost: 0 NFE; with momentum one tensor shaped like ``x``, kept for the trajectory.
    * Neutral: ``eta=1`` with the other defaults is bit-identical to no rule.
    * Defaults by family, (w, r, beta): SDXL (15, 15, -0.5), SD 2.1 (10, 7.5, -0.75), DiT-XL/2
      (4, 5, -0.5), EDM2-S (4, 2.5, -0.75), all with ``eta = 0``.

    Args:
        eta: Share of the parallel part that stays; the paper takes 0.
        r: Cap on ``||delta||`` in units of x0, so it grows with the root of a sample's
            size; the paper takes 2.5 (EDM2-S) to 15 (SDXL).
        beta: Momentum; negative values push away from directions already taken.
        form: ``paper``; or a published variant: ``from_null``, ``D_u + w delta'`` (diffusers), or
            ``one_more``, ``D_c + w delta'`` (node graphs), both with ``w = 1 + W``.
        space: Space in which lengths are measured: ``sample`` (x0), ``epsilon``,
            ``v_prediction`` or ``flow_prediction``. Noise space gives almost plain CFG.
        dim: Dimension over which lengths and products run: 1 channels, -1 packed tokens, each
            position for itself; ``None``: a sample is one vector.
        after: Number of first steps that are left as they are and only feed the momentum. The
            mixed form of HunyuanImage 2.1 is ``(cfg(3.5) | interval(0, 0.1)) + (cfg(10) |
            interval(0.1, 1)) | apg(r=10, beta=-0.5, after=5)`` at 50 steps.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.APG(r=5.0, beta=-0.5))
        'cfg(4.0) | apg(r=5.0, beta=-0.5)'

    Source:
        Sadat, Hilliges, Weber (2024), arXiv:2410.02416; steps in the order of their code.
    """

    eta: Annotated[float, FINITE] = 0.0
    r: Annotated[float, Range(0, inf, closed="right")] = inf
    beta: Annotated[float, Range(-1, 1, closed="neither")] = 0.0
    form: Literal["paper", "from_null", "one_more"] = "paper"
    space: Space = "sample"
    dim: int | None = None
    after: Annotated[int, Range(0, inf, closed="left")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("apg", "form", self.form, FORMS)
        check_space("apg", self.space)
        if self.dim == 0:
            raise ValueError("apg: dim must be 1 or more, or negative, got 0, the batch")

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        given = update
        base, update, back = in_space(self.space, predictions.base, update, ctx)
        plain = update
        if self.beta:
            update = update + ctx.weight * self.beta * ctx.recall(0.0)
            ctx.remember(update / ctx.weight)  # uncapped, and free of a scheduled weight
        if ctx.run.step < self.after:
            return given
        over = over_token("apg", self.dim, base.ndim)
        if self.r < inf:
            update = update * (ctx.weight * self.r / norm(update, over)).clamp(max=1)
        if self.eta != 1:
            update = update - (1 - self.eta) * project(update, onto=base, over=over)
        if self.form != "paper":
            update = update * (1 + 1 / ctx.weight)
        if self.form == "from_null":
            update = update - plain / ctx.weight
        return back(update)
