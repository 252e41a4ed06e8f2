"""Guidance rescale."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Range, Rule, register
from fairlead.guidance.spaces import Space, check_space, in_space


@register("rescale", ids=("S035", "S110"), neutral="0.0")
@dataclass(frozen=True)
class Rescale(Rule):
    r"""Brings the guided prediction back to the conditional one's standard deviation.

    With ``y`` the guided and ``y_c`` the conditional prediction:

    .. math:: y \gets \phi \, y \, \frac{\mathrm{std}(y_c)}{\mathrm{std}(y)} + (1 - \phi) \, y

    * Space: x0 unless ``space`` says otherwise; the results differ. Unbiased ``std`` per sample,
      over all dimensions but the first; it subtracts the mean, but a constant offset is scaled
      too.
    * Cost: 0 NFE.
    * Neutral: ``phi = 0``. ``phi = 1`` gives ``std(y) = std(y_c)`` exactly.

    Args:
        phi: Mix in [0, 1]; 0.7 at ``w = 7.5`` in the paper, 0.5 to 0.75 is good.
        space: ``sample`` (x0); the paper's ``v_prediction``; or ``epsilon``, ``flow_prediction``.
            In noise space it does almost nothing at high noise.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.Rescale(0.7))
        'cfg(7.5) | rescale(0.7)'

    Source:
        Lin, Liu, Li, Yang (2023), arXiv:2305.08891, section 3.4.
    """

    phi: Annotated[float, Range(0, 1)]
    space: Space = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space("rescale", self.space)

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.phi == 0:
            return update
        base, update, back = in_space(self.space, predictions.base, update, ctx)
        guided = base + update
        over = tuple(range(1, base.ndim))
        spread = guided.std(over, keepdim=True)
        ratio = base.std(over, keepdim=True) / spread.where(spread > 0, 1.0)
        return back(update + self.phi * (ratio - 1) * guided)
