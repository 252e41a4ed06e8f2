"""Perturbed-attention guidance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Context, Range, Scale, Term, register
from fairlead.guidance.branch import Branch, Perturbation
from fairlead.guidance.layers import match_layers


@dataclass(frozen=True)
class IdentityAttention(Perturbation):
    """Every token attends to itself alone: attention returns its values."""

    layers: str | tuple[str, ...]

    def modules(self, denoiser: Denoiser) -> list[nn.Module]:
        return match_layers("pag", self.layers, denoiser.attention_layers)

    def __call__(
        self, inputs: tuple[Tensor, ...], output: Tensor, rows: Sequence[int], ctx: Context
    ) -> Tensor:
        return inputs[2]


@register("pag", ids=("S029",), nfe=1, neutral="0.0")
@dataclass(frozen=True)
class PAG(Term):
    r"""Guides away from the model with identity self-attention in chosen layers.

    .. math:: D = D_c + s (D_c - \tilde D_c)

    The perturbed branch carries the condition of the base, so ``cfg(w) + pag(s)`` is the
    three-branch form. Only the perturbed rows leave fused attention.

    * Effective ``w``: ``s = w - 1`` between the perturbed and the plain prediction.
    * Cost: 1 NFE beside the conditional one.
    * Neutral: ``s = 0``.
    * Defaults by family: UNets ``mid``; SD3, PixArt, HunyuanDiT ``blocks.1``; ``s = 3`` beside
      ``w = 4``, or 5 alone.

    Args:
        s: Scale; one number, or one a sample.
        layers: Attention layers by name: whole dotted components, ``*`` for any one, several
            with commas or as a list.
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
