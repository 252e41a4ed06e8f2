"""Tangential damping CFG (TCFG)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Rule, inner, opposed, register
from fairlead.guidance.spaces import Space, check_space, in_space


@register("tangential", ids=("XC3",))
@dataclass(frozen=True)
class Tangential(Rule):
    r"""Keeps of the null prediction what it shares with the conditional one (TCFG).

    With ``v_1`` the leading right singular vector of the two predictions as rows, ``n`` what the
    terms before the rule push away from (the null prediction after ``cfg(w)``), and ``w - 1``
    their signed weight:

    .. math:: y = y_n' + w (y_c - y_n'), \qquad y_n' = \langle y_n, v_1 \rangle \, v_1

    ``v_1`` comes from the 2x2 Gram matrix: with ``(a, b)`` its leading unit eigenvector,
    ``y_n' = b (a y_c + b y_n)``. Where both eigenvalues are equal nothing is damped.

    * Space: noise unless ``space`` says otherwise; the score gives the same, x0 and velocity do
      not. Per sample, over all dimensions but the first.
    * Cost: 0 NFE.
    * Neutral: none; parallel predictions give plain CFG.
    * Defaults by family: scales as in CFG, 7.5 (SD 1.5), 5 (SDXL), 7 (SD3).

    Args:
        space: Space in which it acts: ``epsilon``, or ``sample``, ``v_prediction``,
            ``flow_prediction`` (SD3's model output).

    Raises:
        ValueError: The space is unknown.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(5.0) | fl.Tangential())
        'cfg(5.0) | tangential()'

    Source:
        Kwon, Kim, Jeong, Hsiao, Uh (2025), arXiv:2503.18137.
    """

    space: Space = "epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space("tangential", self.space)

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        base, update, back = in_space(self.space, predictions.base, update, ctx)
        null, weight = opposed(base, update, ctx)
        gap, cross = inner(base, base) - inner(null, null), 2 * inner(base, null)
        # (a, b) = (cos h, sin h) with tan 2h = cross/gap; h = pi/2 where both vanish
        radius = torch.hypot(gap, cross)
        even = radius == 0
        radius = radius.where(~even, 1.0)
        shared = cross / radius / 2  # a b
        own = ((1 - gap / radius) / 2).where(~even, 1.0)  # b^2
        return back(update + weight * ((1 - own) * null - shared * base))
