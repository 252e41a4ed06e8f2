"""Normalised attention guidance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Range, Schedule, register
from fairlead.guidance.branch import AttentionPerturbation, Branch, Transform
from fairlead.guidance.context import Context, Run


@dataclass(frozen=True)
class Beside(Transform):
    """Puts the tokens of a negative text behind those of the condition."""

    against: str

    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: Context) -> Condition:
        assert ctx.given is not None
        own = _embedded(condition, denoiser)
        other = _embedded(ctx.given(self.against).expand(own.batch or 1), denoiser)
        lengths = {n: v.shape[1] for n, v in own.items() if v.is_floating_point() and v.ndim == 3}
        if not lengths:
            raise ValueError(
                "nag: none of the conditions is a text, (B, tokens, width): "
                f"{', '.join(own) or 'there are none'}"
            )
        joined = {}
        for name, value in own.items():
            goes_with = "mask" in name and value.ndim == 2 and value.shape[1] in lengths.values()
            if name not in lengths and not goes_with:
                continue
            if other[name].shape != value.shape:
                raise ValueError(
                    f"nag: {name} of the negative must have the shape of the condition's, "
                    f"{tuple(value.shape)}, got {tuple(other[name].shape)}; pad the shorter text"
                )
            joined[name] = torch.cat([value, other[name].to(value)], dim=1)
        return own.replace(**joined)


def _embedded(condition: Condition, denoiser: Denoiser) -> Condition:
    """The condition with those indices embedded that have an embedding."""
    known = (n for n, v in condition.items() if v.is_floating_point() or n in denoiser.embeddings)
    return condition.replace(**denoiser.embed(condition.only(*known)).tensors)


@dataclass(frozen=True)
class Extrapolated(AttentionPerturbation):
    """Attends to both halves of the text by itself, and extrapolates for the image's tokens."""

    patterns: str | tuple[str, ...]
    phi: float
    tau: float
    a: float
    order: int

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("nag", self.patterns, ("cross", "joint"))

    def __call__(self, call: Attended, rows: Sequence[int], ctx: Context) -> Tensor:
        text = call.text
        # adapters attend to other tokens too, in calls of their own
        if text is None or (text.stop - text.start) % 2 or call.index:
            return call.attend()
        middle = (text.start + text.stop) // 2
        halves = slice(text.start, middle), slice(middle, text.stop)
        if call.layer.kind == "cross":
            return self.blend(*(_attend(call, None, [half]) for half in halves))
        parts: dict[int, Tensor] = {}
        images = []
        for half in halves:
            seen = _attend(call, [half, call.image], [half, call.image])
            size = half.stop - half.start
            parts[half.start] = seen[..., :size, :]
            images.append(seen[..., size:, :])
        parts[call.image.start] = self.blend(*images)
        return torch.cat([parts[start] for start in sorted(parts)], dim=-2)

    def blend(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The guided output from both, `(M, heads, N, d)`; a token's vector goes over heads."""
        out = positive + self.phi * (positive - negative)
        before, after = (torch.linalg.vector_norm(z, self.order, (1, 3), keepdim=True)
                         for z in (positive, out))  # fmt: skip
        tiny = torch.finfo(out.dtype).tiny
        out = out * (self.tau * before / after.clamp(min=tiny)).clamp(max=1)
        blended: Tensor = self.a * out + (1 - self.a) * positive
        return blended


def _attend(call: Attended, queries: list[slice] | None, keys: list[slice]) -> Tensor:
    """Attention of some queries to some keys."""
    mask = call.mask
    if mask is not None and mask.shape[-1] == call.k.shape[-2]:
        mask = torch.cat([mask[..., part] for part in keys], -1)
        if queries is not None and mask.shape[-2] > 1:
            mask = torch.cat([mask[..., part, :] for part in queries], -2)
    k, v = (torch.cat([t[..., part, :] for part in keys], -2) for t in (call.k, call.v))
    q = call.q
    if queries is not None:
        q = torch.cat([q[..., part, :] for part in queries], -2)
    return call.attend(q, k, v, mask)


@register("nag", ids=("XP3",), neutral="0.0")
@dataclass(frozen=True)
class NAG(Schedule):
    r"""Negative prompting inside attention; serves few-step models, too, and costs no branch.

    In every layer that attends to a text, with the outputs ``Z+`` and ``Z-`` of the same image
    queries under the condition's text and under the negative's, per token and before the
    output projection:

    .. math::
        \tilde Z &= Z_+ + \phi \, (Z_+ - Z_-), \qquad
        R = \lVert \tilde Z \rVert_1 / \lVert Z_+ \rVert_1, \\
        Z &= a \, \tilde Z \, \min(1, \tau / R) + (1 - a) \, Z_+

    Every branch before it that carries the condition, the base included, is guided so. In joint
    attention both texts keep their own stream, and the image's tokens are the guided ones for
    both.

    * Cost: 0 NFE; attention to a second text, and longer sequences where attention is joint.
    * Neutral: ``phi = 0`` with ``tau >= 1``; ``a = 0``; a negative that equals the condition.
    * Defaults by family: Flux-Schnell as below; video models ``phi = 10``, or ``tau = 3.5`` and
      ``a = 0.5``. The paper finds ``phi`` 4 to 8 best; its code's ``nag_scale`` is ``1 + phi``.

    Args:
        phi: Strength of the extrapolation, 0 or more.
        tau: Largest growth of a token's norm, above 0.
        a: Share of the extrapolated output in [0, 1].
        against: Condition state that is pushed away from, given to
            ``fl.sample(negative=..., states=...)``; or ``null``.
        layers: Cross- or joint-attention layers by name, as for ``pag``.
        end: Share of the run, in [0, 1], after which it is off.
        order: Order of the norm: 1, or 2 as in an early release.

    Raises:
        ValueError: A parameter is out of range; a pattern names no layer (lists them); no
            condition is a text, or the negative's has another length.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(2.0) | fl.NAG(4.0))
        'cfg(2.0) | nag(4.0)'

    Source:
        Chen, Bandyopadhyay, Zou, Song (2025), arXiv:2505.21179.
    """

    reads_text: ClassVar[bool] = True

    phi: Annotated[float, Range(0, inf, closed="left")]
    tau: Annotated[float, Range(0, inf, closed="right")] = 2.5
    a: Annotated[float, Range(0, 1)] = 0.25
    against: str = "negative"
    layers: str | tuple[str, ...] = "**"
    end: Annotated[float, Range(0, 1)] = 1.0
    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise ValueError(f"nag: order must be 1 or 2, got {self.order}")

    def check(self, denoiser: Denoiser, run: Run) -> None:
        denoiser.match_attention("nag", self.layers, ("cross", "joint"))

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        idle = self.a == 0 or (self.phi == 0 and self.tau >= 1)
        if branch.state != "cond" or idle or ctx.fraction >= self.end:
            return branch
        within = Extrapolated(self.layers, self.phi, self.tau, self.a, self.order)
        return replace(
            branch.transformed(Beside(self.against)),
            perturbations=(*branch.perturbations, within),
        )
