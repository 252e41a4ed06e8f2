"""Statistics of the style in place of a sum of text and style attention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.guidance.algebra import Range, Schedule, register
from fairlead.guidance.branch import AttentionPerturbation, Branch
from fairlead.guidance.context import Context, Run

TINY = 1e-6
"""Least deviation that is divided by: half precision has channels without any."""


def normalised(content: Tensor, style: Tensor) -> Tensor:
    """`content` with the mean and deviation over tokens of `style`, both `(M, heads, N, d)`."""
    dtype = working_dtype(content)
    (mean, size), (wanted, target) = (
        (t.to(dtype).mean(-2, keepdim=True), t.to(dtype).std(-2, correction=0, keepdim=True))
        for t in (content, style)
    )
    return ((content - mean) / size.clamp(min=TINY) * target + wanted).to(content.dtype)


@dataclass(frozen=True)
class StyleStatistics(AttentionPerturbation):
    """What an adapter adds turns the sum of both attentions into the normalised text's."""

    patterns: str | tuple[str, ...]
    a: float

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        found = denoiser.match_attention("adain", self.patterns, ("cross",))
        adapted = [layer for layer in found if layer.adapters]
        if not adapted:
            raise ValueError(
                "adain: none of the layers "
                f"{', '.join(layer.name for layer in found)} attends to an image prompt: load an "
                "adapter first"
            )
        return adapted

    def __call__(self, call: Attended, rows: Sequence[int], ctx: Context) -> Tensor:
        out = call.attend()
        if call.index != 1:
            return out
        text = call.earlier[0]
        # the layer adds this to the text's
        added: Tensor = (1 - self.a) * out + self.a * (normalised(text, out) - text)
        return added


@register("adain", ids=("S065",), neutral="0.0")
@dataclass(frozen=True)
class AdaIN(Schedule):
    r"""Gives attention to the text the statistics of attention to a style image.

    An image-prompt adapter adds its attention to the text's, so that a strong style drowns the
    text. In every layer with an adapter, with the outputs ``h_t`` for the text and ``h_s`` for
    the style image, per head and channel, mean ``m`` and deviation ``d`` over the image's tokens:

    .. math::
        h = h_t + \lambda \bigl[(1 - a) \, h_s + a \, (\hat h - h_t)\bigr], \qquad
        \hat h = \frac{h_t - m(h_t)}{d(h_t)} \, d(h_s) + m(h_s)

    with the adapter's scale ``lambda``: at 1 and ``a = 1`` the result is ``\hat h``. It acts in
    all branches before it, the base included. Cross-modal AdaIN is one part of StyleStudio;
    ``fl.CFG(against="negative")`` with a negative style image is another, and its teacher, which
    lends its self-attention early on, is ``fl.sample_taught``.

    * Cost: 0 NFE.
    * Neutral: ``a = 0``; with ``lambda = 1`` and ``a = 1`` a style whose statistics are those of
      the text gives ``h_t``.
    * Defaults by family: SDXL with an adapter at scale 1, ``w = 5``.

    Args:
        a: Share of the normalised output in [0, 1].
        layers: Cross-attention layers by name, as for ``pag``; those without an adapter stay.
        end: Share of the run, in [0, 1], after which it is off.

    Raises:
        ValueError: A parameter is out of range; a pattern names no layer (lists them); no layer
            has an adapter; it stands inside a sum.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(5.0) | fl.AdaIN())
        'cfg(5.0) | adain()'

    Source:
        Lei, Song, Zhu, Wang, Zhang (2024), arXiv:2412.08503.
    """

    reads_style: ClassVar[bool] = True

    a: Annotated[float, Range(0, 1)] = 1.0
    layers: str | tuple[str, ...] = "**"
    end: Annotated[float, Range(0, 1)] = 1.0

    def check(self, denoiser: Denoiser, run: Run) -> None:
        StyleStatistics(self.layers, self.a).layers(denoiser)

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        if self.a == 0 or ctx.fraction >= self.end:
            return branch
        within = StyleStatistics(self.layers, self.a)
        return replace(branch, perturbations=(*branch.perturbations, within))
