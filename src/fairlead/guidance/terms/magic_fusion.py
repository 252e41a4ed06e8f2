"""MagicFusion: saliency-aware blending of two models."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import Range, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.saliency import Fusion, more_salient


@register("magic_fusion", ids=("S082",), nfe=3)
@dataclass(frozen=True)
class MagicFusion(Fusion):
    r"""Takes, at each position, the guided prediction of the model that responds more there.

    With ``G`` the sampled model, ``E`` the expert, ``a_M = w (eps_c - eps_u)`` the response of a
    model, and ``P`` the smoothed mean over channels of the absolute value:

    .. math::
        D = D_\mathrm{rest} + (1 - M) (E_w - G_w), \qquad
        M = \bigl[ \mathrm{softmax}(k_G P(a_G)) \ge \mathrm{softmax}(k_E P(a_E)) \bigr]

    with the softmax over all positions of a sample. After ``cfg(w)`` of the same ``w`` this is the
    paper's ``M G_w + (1 - M) E_w``. Its switch time is an interval over this term alone: its
    mode 2 from T_f = 600, ``cfg(7.5) + (magic_fusion(7.5) | interval(0, 0.4))``.

    * Space: responses are those of the noise, so the noise level matters.
    * Cost: 3 NFE beside the conditional one, of which ``cfg`` shares the null.
    * Ties go to the sampled model. Both must share the space of samples and the schedule.

    Args:
        w: Guidance scale of both models; 7.5 in the paper.
        k: Sharpness ``k_G`` of the sampled model's map, >= 0.
        k_expert: Sharpness ``k_E`` of the expert's; 0 makes its map uniform.
        model: Name of the expert among the denoiser's own or ``fl.sample(models=...)``.
        state: Condition state of the expert.
        pool: Side of the smoothing window; 1 does not smooth.

    Raises:
        ValueError: A parameter is out of range; there is no model of that name.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) + fl.MagicFusion(7.5, model="weak"))
        "cfg(7.5) + magic_fusion(7.5, model='weak')"

    Source:
        Zhao, Zheng, Wang, Lan, Yang (2023), arXiv:2303.13126.
    """

    k: Annotated[float, Range(0, math.inf, closed="left")] = 1.0
    k_expert: Annotated[float, Range(0, math.inf, closed="left")] = 1.0
    model: str = "expert"
    state: str = "cond"
    pool: Annotated[int, Range(1, math.inf, closed="left")] = 4

    @cached_property
    def other(self) -> tuple[Branch, Branch]:
        return (
            Branch(self.model, state=self.state, model=self.model),
            Branch(f"{self.model} null", state="null", model=self.model),
        )

    def keep(self, own: Tensor, other: Tensor) -> Tensor:
        return more_salient(own, other, self.pool, self.k, self.k_expert)
