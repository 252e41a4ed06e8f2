"""Perturbed-attention guidance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer, masked
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Context, Range, Scale, Term, register
from fairlead.guidance.branch import AttentionPerturbation, Branch


@dataclass(frozen=True)
class IdentityAttention(AttentionPerturbation):
    """Every token of the image attends to itself and, in joint attention, to the text."""

    patterns: str | tuple[str, ...]

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("pag", self.patterns, ("self", "joint"))

    def __call__(self, call: Attended, rows: Sequence[int], ctx: Context) -> Tensor:
        if call.text is None:
            return call.v
        # as a softmax over the text and the token itself, without the matrix over all tokens
        image, text, mask = call.image, call.text, call.mask
        per_query = mask is not None and mask.shape[-2] > 1
        k, v = call.k[..., text, :], call.v[..., text, :]
        own = (call.q * call.k).sum(-1, keepdim=True)[..., image, :] * call.scale
        over_text = call.q[..., image, :] @ k.transpose(-1, -2) * call.scale
        if mask is not None:
            over_text = masked(over_text, mask[..., image if per_query else slice(None), text])
        p = torch.cat([over_text, own], -1).softmax(-1)
        of_text = mask[..., text, :] if mask is not None and per_query else mask
        parts = {
            image.start: p[..., :-1] @ v + p[..., -1:] * call.v[..., image, :],
            text.start: call.attend(q=call.q[..., text, :], mask=of_text),
        }
        return torch.cat([parts[start] for start in sorted(parts)], dim=-2)


@register("pag", ids=("S029",), nfe=1, neutral="0.0")
@dataclass(frozen=True)
class PAG(Term):
    r"""Guides away from the model with identity self-attention in chosen layers.

    .. math:: D = D_c + s (D_c - \tilde D_c)

    The perturbed branch carries the condition of the base, so ``cfg(w) + pag(s)`` is the
    three-branch form. Only the perturbed rows leave fused attention. In joint attention (SD3,
    Flux) the image's tokens keep the text, and the text sees all.

    * Effective ``w``: ``s = w - 1`` between the perturbed and the plain prediction.
    * Cost: 1 NFE beside the conditional one.
    * Neutral: ``s = 0``.
    * Defaults by family: UNets ``mid``; SD3, PixArt, HunyuanDiT ``blocks.1``; ``s = 3`` beside
      ``w = 4``, or 5 alone.

    Args:
        s: Scale; one number, or one a sample.
        layers: Self- or joint-attention layers by name: whole dotted components, ``*`` for any
            one, ``**`` for any number, several with commas or as a list.
        decay: Fall of ``s`` over the run, ``max(0, s - decay (1000 - t))`` with ``t`` from 1000 to
            0; 0 is constant.

    Raises:
        ValueError: A parameter is out of range; a pattern names no layer (lists them).

    Example:
        >>> import fairlead as fl
        >>> str(fl.PAG(3.0, layers="mid.*"))
        "pag(3.0, layers='mid.*')"

    Source:
        Ahn et al. (2024), arXiv:2403.17377; decay from its diffusers port.
    """

    s: Scale
    layers: str | tuple[str, ...] = "mid"
    decay: Annotated[float, Range(0, float("inf"), closed="left")] = 0.0

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.s

    def strength_at(self, ctx: Context) -> float | tuple[float, ...]:
        if not self.decay:
            return self.s
        lost = self.decay * 1000 * ctx.fraction
        if isinstance(self.s, tuple):
            return tuple(max(0.0, s - lost) for s in self.s)
        return max(0.0, self.s - lost)

    @cached_property
    def negative(self) -> Branch:
        return Branch("pag", perturbations=(IdentityAttention(self.layers),))
