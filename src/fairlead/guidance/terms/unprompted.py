"""Unsupervised classifier-free guidance of masked language models."""

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fairlead.guidance.algebra import (
    Context,
    Predictions,
    Range,
    Scale,
    Term,
    less_one,
    register,
)
from fairlead.guidance.branch import COND, Branch, Point

PROMPT = "prompt"


@dataclass(frozen=True)
class WithoutPrompt(Point):
    """The same tokens with the mask in place of the prompt, and of the least sure others.

    Args:
        remask: Share of the written tokens outside the prompt that are masked again.
    """

    remask: float = 0.0

    def __call__(self, x: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        process = getattr(ctx.denoiser, "process", None)
        mask = getattr(process, "mask", None)
        if mask is None:
            raise ValueError(f"{Unprompted.name}: needs a process with masks")
        prompt = ctx.run.masks[PROMPT].expand(x.shape) > 0
        hidden = prompt
        if self.remask:
            space = getattr(ctx.denoiser, "space", "clean")
            if space != "clean":
                raise ValueError(
                    f"{Unprompted.name}: remask needs predictions of the clean tokens, not in the "
                    f"space {space!r}"
                )
            written = (x != mask) & ~prompt
            sure = predictions[COND].gather(-1, x.clamp(max=mask - 1)[..., None])[..., 0]
            order = sure.masked_fill(~written, inf).argsort(dim=-1, stable=True).argsort(dim=-1)
            # the tiny addend keeps 0.7 * 10 from falling to 6
            count = (self.remask * written.sum(-1, keepdim=True) + 1e-9).floor()
            hidden = prompt | (written & (order < count))
        return torch.where(hidden, mask, x)


@register("unprompted", ids=("S089", "S054"), nfe=1, neutral="1.0")
@dataclass(frozen=True)
class Unprompted(Term):
    r"""Extrapolates away from the prediction without the prompt, whose tokens are masked.

    A masked language model has seen masks everywhere, so it needs no training for this null:

    .. math:: \log p_w = \log p(\cdot \mid z_\mathrm{no\ prompt}) + w \, [\log p(\cdot \mid z)
              - \log p(\cdot \mid z_\mathrm{no\ prompt})]

    The prompt is the region ``masks={"prompt": ...}`` of ``fl.discrete.sample``; its tokens are
    never changed, and stay at their places in the null. A second modality is a prompt too.

    With ``remask`` the null also loses the ``floor(remask * n)`` of the `n` tokens written so far
    that the conditional prediction is least sure of, at every step anew (adaptive CFG); a prompt
    mask of zeros then leaves the prompt in it.

    * Cost: 1 NFE beside the conditional one; none where ``w = 1``.
    * Neutral: ``w = 1``; an empty prompt with ``remask = 0``.

    Args:
        w: Guidance scale: 1 is conditional, 1.1 to 2.6 in the paper, whose ``cfg`` is ``w - 1``.
        remask: Share of the written tokens that the null loses too, in [0, 1]; in ``logprob``
            alone.

    Raises:
        ValueError: A parameter is out of range; there is no mask ``prompt``; the process has none;
            ``remask`` in another domain.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Unprompted(1.6))
        'unprompted(1.6)'

    Source:
        Nie et al. (2024), arXiv:2410.18514; ``remask``: adaptive CFG (2025), arXiv:2505.20199.
    """

    domains: ClassVar[frozenset[str]] = frozenset({"logprob", "posterior"})
    masks: ClassVar[tuple[str, ...]] = (PROMPT,)

    w: Scale
    remask: Annotated[float, Range(0, 1)] = 0.0

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return less_one(self.w)

    @property
    def negative(self) -> Branch:
        needs = (COND,) if self.remask else ()
        return Branch("unprompted", needs=needs, point=WithoutPrompt(self.remask))
