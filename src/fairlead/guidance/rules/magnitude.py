"""Magnitude-aware guidance (MAMBO-G)."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Range, Rule, norm, opposed, register
from fairlead.guidance.spaces import Space, check_space, in_space


@register("magnitude", ids=("XC11",), neutral="0.0")
@dataclass(frozen=True)
class Magnitude(Rule):
    r"""Weakens guidance where both predictions lie far apart for their length (MAMBO-G).

    With ``n`` what the terms before the rule push away from, the null prediction after
    ``cfg(w)``:

    .. math::
        w_\mathrm{eff} = 1 + (w - 1) \, e^{-a r}, \qquad
        r = \lVert y_c - y_n \rVert / \lVert y_n \rVert

    * Space: velocity, the model output of the paper, unless ``space`` says otherwise. Per sample,
      over all dimensions but the first.
    * Cost: 0 NFE.
    * Neutral: ``a = 0``.
    * Defaults by family: ``w = 10``, ``a = 8`` (SD3.5, Wan 2.1).

    Args:
        a: Rate of the damping, 0 or more; 8 in diffusers.
        space: Space in which lengths are measured: ``flow_prediction``, or ``sample``,
            ``epsilon``, ``v_prediction``.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(10.0) | fl.Magnitude(8.0))
        'cfg(10.0) | magnitude()'

    Source:
        Zhu, Peng, Shu et al. (2025), arXiv:2508.03442.
    """

    a: Annotated[float, Range(0, inf, closed="left")] = 8.0
    space: Space = "flow_prediction"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space("magnitude", self.space)

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.a == 0:
            return update
        base, there, _ = in_space(self.space, predictions.base, update, ctx)
        null, _ = opposed(base, there, ctx)
        tiny = torch.finfo(null.dtype).tiny
        return update * torch.exp(-self.a * norm(base - null) / norm(null).clamp(min=tiny))
