"""Filters by the conditional model: only tokens that it finds plausible stay."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Range, Rule, register
from fairlead.guidance.domains import FLOOR
from fairlead.parameters import nearest

LOGPROB = frozenset({"logprob"})


@register("plausible", ids=("XD3",), neutral="0.0")
@dataclass(frozen=True)
class Plausible(Rule):
    r"""Keeps tokens that the conditional model gives at least a share of its best one's chance.

    .. math:: V = \{ k : p_c(k) \ge \alpha \max p_c \}, \qquad p(k) = 0 \text{ outside}

    * Space: log-probabilities, per row of the vocabulary. Cost: 0 NFE.
    * Neutral: ``alpha = 0``. The best token of the conditional model always stays.

    Args:
        alpha: Share in [0, 1]; 0.1 in the paper.

    Raises:
        ValueError: ``alpha`` is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.5) | fl.Plausible(0.1))
        'cfg(1.5) | plausible(0.1)'

    Source:
        Li et al. (2022), arXiv:2210.15097.
    """

    domains: ClassVar[frozenset[str]] = LOGPROB

    alpha: Annotated[float, Range(0, 1)]

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.alpha == 0:
            return update
        base = predictions.base
        kept = base >= base.amax(-1, keepdim=True) + math.log(self.alpha)
        return update.where(kept, FLOOR - base)


@register("nucleus", ids=("XD4", "XD2"), neutral="1.0")
@dataclass(frozen=True)
class Nucleus(Rule):
    r"""Keeps the fewest tokens of the conditional model whose chances add up to ``p``.

    A filter that stands before the combine: what the conditional model excludes stays excluded
    whatever the terms add; ``top_p`` of ``generate`` stands behind it.

    With ``against`` a token must also be in the nucleus of that branch, which the terms push away
    from, as in context-aware decoding. Where no token is in both, those of the conditional
    model's nucleus stay with ``p_c^w``, that branch counting alike for all of them.

    * Space: log-probabilities, per row of the vocabulary. Cost: 0 NFE.
    * Neutral: ``p = 1``. The best token always stays.

    Args:
        p: Mass in (0, 1]; 0.9 in the paper.
        against: Name of a second branch that must contain the token, such as ``null``.

    Raises:
        ValueError: ``p`` is out of range; the terms before it have no such branch.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.5) | fl.Nucleus(0.9))
        'cfg(1.5) | nucleus(0.9)'

    Source:
        Liu et al. (2021), arXiv:2105.03023; Holtzman et al. (2019), arXiv:1904.09751; two
        nuclei: Shi et al. (2023), arXiv:2305.14739.
    """

    domains: ClassVar[frozenset[str]] = LOGPROB

    p: Annotated[float, Range(0, 1, closed="right")]
    against: str = ""

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.p == 1:
            return update
        base = predictions.base
        kept = self._nucleus(base)
        if self.against:
            if self.against not in predictions.names:
                raise ValueError(
                    f"nucleus: the terms before it have no branch {self.against!r}; "
                    f"{nearest(self.against, predictions.names)}"
                )
            both = kept & self._nucleus(predictions[self.against])
            alone = ~both.any(-1, keepdim=True)
            update = torch.where(alone, ctx.weight * base, update)
            kept = torch.where(alone, kept, both)
        return update.where(kept, FLOOR - base)

    def _nucleus(self, log_p: Tensor) -> Tensor:
        """Whether each token is in the nucleus."""
        ordered, index = log_p.log_softmax(-1).exp().sort(-1, descending=True)
        kept = torch.zeros_like(log_p, dtype=torch.bool)
        return kept.scatter(-1, index, ordered.cumsum(-1) - ordered < self.p)
