"""Unsupervised classifier-free guidance of masked language models."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Scale, Term, less_one, register
from fairlead.guidance.branch import Branch, Point

PROMPT = "prompt"


@dataclass(frozen=True)
class WithoutPrompt(Point):
    """The same tokens with the mask in place of the prompt."""

    def __call__(self, x: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        process = getattr(ctx.denoiser, "process", None)
        mask = getattr(process, "mask", None)
        if mask is None:
            raise ValueError(f"{Unprompted.name}: needs a process with masks")
        return torch.where(ctx.run.masks[PROMPT].expand(x.shape) > 0, mask, x)


HIDDEN = Branch("unprompted", point=WithoutPrompt())


@register("unprompted", ids=("S089", "S054"), nfe=1, neutral="1.0")
@dataclass(frozen=True)
class Unprompted(Term):
    r"""Extrapolates away from the prediction without the prompt, whose tokens are masked.

    A masked language model has seen masks everywhere, so it needs no training for this null:

    .. math:: \log p_w = \log p(\cdot \mid z_\mathrm{no\ prompt}) + w \, [\log p(\cdot \mid z)
              - \log p(\cdot \mid z_\mathrm{no\ prompt})]

    The prompt is the region ``masks={"prompt": ...}`` of ``fl.discrete.sample``; its tokens are
    never changed, and stay at their places in the null. A second modality is a prompt too.

    * Cost: 1 NFE beside the conditional one; none where ``w = 1``.
    * Neutral: ``w = 1``; an empty prompt.

    Args:
        w: Guidance scale: 1 is conditional, 1.1 to 2.6 in the paper, whose ``cfg`` is ``w - 1``.

    Raises:
        ValueError: ``w`` is NaN or infinite; there is no mask ``prompt``; the process has none.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Unprompted(1.6))
        'unprompted(1.6)'

    Source:
        Nie et al. (2024), arXiv:2410.18514.
    """

    domains: ClassVar[frozenset[str]] = frozenset({"logprob", "posterior"})
    masks: ClassVar[tuple[str, ...]] = (PROMPT,)

    w: Scale

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return less_one(self.w)

    @property
    def negative(self) -> Branch:
        return HIDDEN
