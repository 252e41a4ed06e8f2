"""Face-diffuser: a scene model, a person model, and their fusion in between."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import Context, Range, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.saliency import Fusion, more_salient


@register("face_diffuser", ids=("S096",), nfe=3)
@dataclass(frozen=True)
class FaceDiffuser(Fusion):
    r"""A text model first, then where it responds less a subject model, then the subject model.

    With ``T_w`` the text model under CFG, and the subject model pushed away from its own
    prediction without the subject, ``S_w = S_text + w (S_subject - S_text)``:

    .. math::
        D = D_\mathrm{rest} + (1 - M) (S_w - T_w), \qquad
        M = \begin{cases} 1 & i \le i_1 \\
            [P(a_T) \ge P(a_S)] & i_1 < i \le i_2 \\ 0 & i > i_2 \end{cases}

    with maps and responses as in ``magic_fusion``. After ``cfg(w)`` of the same ``w`` it is the
    paper's method: 2 NFE a step in the first and last stage, 4 in between.

    * Space: responses are those of the noise, so the noise level matters.
    * ``text_until = fuse_until = 1`` is the text model; both at -1 the subject model.

    Args:
        w: Guidance scale of both models; 5 in the paper.
        text_until: ``i_1 / N``, last step of the first stage; 0.3 in the paper (15 of 50).
        fuse_until: ``i_2 / N``, last step of the second stage; 0.6 in the paper.
        model: Name of the subject model among the denoiser's own or ``fl.sample(models=...)``.
        state: Condition state with the subject; its text alone is the state ``cond``.
        pool: Side of the smoothing window; 1 does not smooth.

    Raises:
        ValueError: A parameter is out of range, or the stages are out of order; there is no
            model or state of that name.

    Example:
        >>> import fairlead as fl
        >>> str(fl.FaceDiffuser(5.0, -1.0, 1.0, model="weak", state="negative"))
        "face_diffuser(5.0, text_until=-1.0, fuse_until=1.0, model='weak', state='negative')"

    Source:
        Wang et al. (2023), arXiv:2311.10329.
    """

    text_until: Annotated[float, Range(-1, 1)] = 0.3
    fuse_until: Annotated[float, Range(-1, 1)] = 0.6
    model: str = "subject"
    state: str = "subject"
    pool: Annotated[int, Range(1, math.inf, closed="left")] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_until > self.fuse_until:
            raise ValueError(
                f"face_diffuser: text_until must be at most fuse_until = {self.fuse_until}, "
                f"got {self.text_until}"
            )

    @cached_property
    def other(self) -> tuple[Branch, Branch]:
        return (
            Branch(f"{self.model} {self.state}", state=self.state, model=self.model),
            Branch(f"{self.model} text", model=self.model),
        )

    def strength_at(self, ctx: Context) -> float:
        return 1.0 if ctx.fraction > self.text_until else 0.0

    def wholly(self, ctx: Context) -> bool:
        return ctx.fraction > self.fuse_until

    def keep(self, own: Tensor, other: Tensor) -> Tensor:
        return more_salient(own, other, self.pool)
