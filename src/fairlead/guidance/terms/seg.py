"""Smoothed energy guidance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Annotated

from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Context, Range, Scale, Term, register
from fairlead.guidance.blur import gaussian_blur
from fairlead.guidance.branch import AttentionPerturbation, Branch
from fairlead.guidance.terms.blur import State
from fairlead.parameters import choose


@dataclass(frozen=True)
class BlurredQueries(AttentionPerturbation):
    """Blurs the queries of the image's tokens over their grid, each head and channel alone."""

    patterns: str | tuple[str, ...]
    width: float

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("seg", self.patterns, ("self", "joint"))

    def __call__(self, call: Attended, rows: Sequence[int], ctx: Context) -> Tensor:
        q = call.q[..., call.image, :].transpose(-1, -2)
        if self.width == inf and len(call.spatial) < 3:  # of one frame: any grid
            blurred = q.mean(-1, keepdim=True).expand(q.shape)
        else:
            grid = call.grid if len(call.grid) > 1 else (1, *call.grid)
            images = q.reshape(*q.shape[:-1], *grid)
            blurred = gaussian_blur(images, self.width).reshape(q.shape)
        whole = call.q.clone()
        whole[..., call.image, :] = blurred.transpose(-1, -2)
        return call.attend(q=whole)


@register("seg", ids=("S022",), nfe=1, neutral="0.0")
@dataclass(frozen=True)
class SEG(Term):
    r"""Guides away from the model with blurred self-attention queries in chosen layers.

    .. math:: D = D_c + s (D_c - \tilde D_c), \qquad
              \tilde A = \mathrm{softmax}\bigl((G Q) K^\top / \sqrt d\bigr) V

    ``G`` is a Gaussian blur over the grid of the image's tokens, frame by frame in a video, with
    reflected borders and no more taps than the grid allows; so it does not tend to the mean as
    the width grows, which has a setting of its own. ``cfg(w) + seg(s)`` is the three-branch form
    of the authors' code; with ``state="null"`` it is that of their paper, in which the prediction
    without condition takes the place of ``D_c`` above. In joint attention only the image's queries
    are blurred.

    * Cost: 1 NFE beside the conditional one, with ``null`` also the one that ``cfg`` shares.
    * Neutral: ``s = 0``; a width of 1/6 or less is the identity, too.
    * Defaults by family: SDXL ``mid``, ``s = 3``, width 10 or infinite; SD3.5-Medium
      ``blocks.7,blocks.8,blocks.9``, ``s = 2.8``.

    Args:
        s: Scale; one number, or one a sample. The paper steers by the width and leaves it at 3.
        width: Standard deviation of the blur in tokens, above 0; infinite gives every token the
            mean query.
        layers: Self- or joint-attention layers by name, as for ``pag``.
        state: Which prediction is perturbed: ``cond``, or ``null``.

    Raises:
        ValueError: A parameter is out of range; a pattern names no layer (lists them); the
            tokens form no grid.

    Example:
        >>> import fairlead as fl
        >>> str(fl.SEG(3.0, width=10.0))
        'seg(3.0, width=10.0)'

    Source:
        Hong (2024), arXiv:2408.00760.
    """

    s: Scale
    width: Annotated[float, Range(0, inf, closed="right")] = inf
    layers: str | tuple[str, ...] = "mid"
    state: State = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("seg", "state", self.state, ("cond", "null"))

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.s

    @cached_property
    def negative(self) -> Branch:
        blurred = BlurredQueries(self.layers, self.width)
        return replace(self.positive, name="seg", perturbations=(blurred,))

    @cached_property
    def positive(self) -> Branch:
        return Branch(self.state, state=self.state)
