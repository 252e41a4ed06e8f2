"""Self-attention guidance."""

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Range, Scale, register
from fairlead.guidance.branch import Branch, Capture, Point, Predictions
from fairlead.guidance.terms.blur import Blurring, Degraded, State, check_blur

TIE = 1e-6
"""Uniform attention gives every token 1, up to rounding, which must not count as above."""


@dataclass(frozen=True)
class Received(Capture):
    """How much attention every token gets: its mean over the tokens is 1."""

    patterns: str | tuple[str, ...]

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("sag", self.patterns, ("self",))

    def __call__(self, call: Attended) -> Tensor:
        received = call.probabilities().mean(1).sum(1)
        return received.reshape(len(received), *call.grid)


@dataclass(frozen=True)
class Attentive(Degraded):
    """Blurs where self-attention gathers."""

    capture: Received

    def mask(self, estimate: Tensor, predictions: Predictions) -> Tensor:
        kept = predictions.maps(self.of, self.capture) or {}
        maps = [m for calls in kept.values() for m in calls]
        if len({m.shape for m in maps}) != 1:
            raise ValueError(
                f"sag: the layers {self.capture.patterns!r} differ in their grids: "
                f"{sorted({tuple(m.shape[1:]) for m in maps})}; name layers of one grid"
            )
        mask = torch.stack(maps).mean(0) > 1 + TIE
        mask = mask.reshape(len(estimate), -1, *mask.shape[-2:])  # (B, frames, h, w)
        if estimate.ndim > 4:
            mask = mask[:, None]
        size = estimate.shape[2:]
        return F.interpolate(mask.to(estimate.dtype), size=size, mode="nearest") > 0.5


@register("sag", ids=("S027",), nfe=1, neutral="0.0")
@dataclass(frozen=True)
class SAG(Blurring):
    r"""Blur guidance where self-attention gathers.

    With the attention ``A`` of a layer, mean over its heads, and the attention that token ``j``
    receives, ``a_j = sum_i A_ij``, whose mean over tokens is 1:

    .. math::
        M_j &= [a_j > 1], \qquad D' = M \odot G D + (1 - M) \odot D, \\
        \tilde x &= \alpha D' + \sigma \, \epsilon(x), \qquad
        \epsilon \gets \epsilon(x) + s \, (\epsilon(x) - \epsilon(\tilde x))

    The mask is brought to the size of the sample by nearest neighbours. With a mask of zeros
    the input is ``x`` itself; with one of ones this is ``blur``.

    * Cost: 1 NFE beside the conditional one (the null one if that is degraded), after it: the two
      share no batch. The layer's attention matrix is held once.
    * Neutral: ``s = 0``; uniform attention.
    * Defaults by family: Stable Diffusion ``s = 0.75``, ``mid``, width 1, kernel 9, ``null``;
      ImageNet-256 in pixels ``s`` 0.5 to 0.8 (0.2 conditional), width 9, kernel 31, an 8x8 layer
      of the way up.

    Args:
        s: Scale; one number, or one a sample.
        layers: Self-attention layers of one grid by name, as for ``pag``; several are averaged.
        width: Standard deviation of the blur in pixels, above 0.
        kernel: Taps a side, odd; cut to what the image allows.
        state: Which prediction is degraded: ``cond``, or ``null`` as in Stable Diffusion with CFG.
        clip: Clip the estimate to [-1, 1] before the blur, as the authors' pixel code does.

    Raises:
        ValueError: A parameter is out of range; a pattern names no layer (lists them); the
            layers differ in their grids, or the tokens form none.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) + fl.SAG(0.75))
        'cfg(7.5) + sag(0.75)'

    Source:
        Hong, Lee, Jang, Kim (2022), arXiv:2210.00939.
    """

    s: Scale
    layers: str | tuple[str, ...] = "mid"
    width: Annotated[float, Range(0, inf, closed="right")] = 1.0
    kernel: int = 9
    state: State = "cond"
    clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blur(self, self.kernel, self.state)

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.s

    @cached_property
    def captures(self) -> tuple[tuple[Branch, Capture], ...]:
        return ((self.positive, Received(self.layers)),)

    def degraded(self, source: Branch) -> Point:
        return Attentive(source, self.width, self.kernel, self.clip, Received(self.layers))
