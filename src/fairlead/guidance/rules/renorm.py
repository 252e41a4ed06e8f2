"""Norm-matched guidance, per sample or per token."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Range, Rule, norm, register
from fairlead.guidance.geometry import over_token
from fairlead.guidance.spaces import Space, check_space, in_space


@register("renorm", ids=("XC11",), neutral="inf")
@dataclass(frozen=True)
class Renorm(Rule):
    r"""Shortens the guided prediction to the conditional one's length.

    .. math:: y \gets y \, \min(1, k \, \lVert y_c \rVert / \lVert y \rVert)

    * Space: velocity, the output of the models that ship it, unless ``space`` says otherwise.
      Norms are those of samples, or with ``dim`` of single tokens.
    * Cost: 0 NFE.
    * Neutral: ``k = inf``. With ``grow`` and ``k = 1`` every length is the conditional one's.
    * Defaults by family: Lumina-Image 2.0 and Z-Image ``renorm()`` with ``k`` 1 to 1.5;
      LongCat-Image ``renorm(dim=-1)``; Qwen-Image ``renorm(dim=-1, grow=True)``, on packed tokens;
      all at ``w`` about 4.

    Args:
        k: Longest length allowed, in units of the conditional one's; at least 1, else guidance
            would shorten a prediction that it does not change.
        dim: Dimension that holds the numbers of one token: 1 for channels first, -1 for packed
            tokens; ``None``: a sample has one length.
        grow: Whether shorter predictions are lengthened too, ``y <- y k ||y_c|| / ||y||``.
        space: Space in which lengths are measured: ``flow_prediction``, or ``sample``,
            ``epsilon``, ``v_prediction``.

    Raises:
        ValueError: A parameter is out of range; ``dim`` is the batch; ``grow`` without a finite
            ``k``.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.Renorm(dim=1, grow=True))
        'cfg(4.0) | renorm(dim=1, grow=True)'

    Source:
        Model pipelines of Lumina-Image 2.0 (2025), Qwen-Image (2025), arXiv:2508.02324, and
        Z-Image (2025); no paper of its own.
    """

    k: Annotated[float, Range(1, inf)] = 1.0
    dim: int | None = None
    grow: bool = False
    space: Space = "flow_prediction"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space("renorm", self.space)
        if self.dim == 0:
            raise ValueError("renorm: dim must be 1 or more, or negative, got 0, the batch")
        if self.grow and self.k == inf:
            raise ValueError("renorm: k must be finite with grow=True, got inf")

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.k == inf:
            return update
        base, update, back = in_space(self.space, predictions.base, update, ctx)
        over = over_token("renorm", self.dim, base.ndim)
        guided = base + update
        length = norm(guided, over)
        ratio = self.k * norm(base, over) / length.where(length > 0, 1.0)
        if not self.grow:
            ratio = ratio.clamp(max=1)
        return back(update + (ratio - 1) * guided)
