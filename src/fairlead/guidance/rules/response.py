"""Guidance only where it responds most: a mask from the update itself."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Range, Rule, register


@register("response", ids=("XM5",), neutral="0.0")
@dataclass(frozen=True)
class Response(Rule):
    r"""Keeps the update where it is largest, and leaves the rest of the sample alone.

    With ``r`` the sum of ``|update|`` over the channels at each position:

    .. math:: \text{update} \gets \text{update} \cdot [\, r \ge \mathrm{quantile}_q(r) \,]

    An edit that changes one thing answers there; elsewhere its direction is noise. The mask
    depends on the predictions, so states that it leaves out are evaluated all the same; it is the
    same in x0, eps, v or u space. Quantiles are per sample.

    * Cost: 0 NFE.
    * Neutral: ``q = 0``.
    * Defaults by family: 0.9 for edits of Stable Diffusion (LEDITS++, semantic guidance).

    Args:
        q: Share of the positions that is left alone, in [0, 1).
        dim: Dimension that is summed over, 1 for channels; ``None``: every number is a position.

    Raises:
        ValueError: ``q`` is out of range, or ``dim`` is the batch.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(5.0) | fl.Response(0.8))
        'cfg(5.0) | response(q=0.8)'

    Source:
        Brack, Friedrich, Kornmeier, Tsaban, Schramowski, Kersting, Passos (2023),
        arXiv:2311.16711.
    """

    q: Annotated[float, Range(0, 1, closed="left")] = 0.9
    dim: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim == 0:
            raise ValueError("response: dim must be 1 or more, or negative, got 0, the batch")

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.q == 0:
            return update
        size = update.abs()
        if self.dim is not None:
            size = size.sum(self.dim, keepdim=True)
        limit = torch.quantile(size.flatten(1), self.q, dim=1)
        return update * (size >= limit.reshape(-1, *[1] * (update.ndim - 1)))
