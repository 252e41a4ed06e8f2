"""Frequency-aware guidance (FreCaS): another strength for what a smaller size cannot show."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Predictions, Range, Rule, register
from fairlead.guidance.resample import along, resize


@register("bands", ids=("S048",), neutral="1.0")
@dataclass(frozen=True)
class Bands(Rule):
    r"""Guides detail that a smaller size cannot show by another strength than the rest.

    With ``delta`` the update, and ``down`` and ``up`` linear resizing to ``ratio`` times the size
    and back:

    .. math::
        D = D_c + g_\mathrm{low} \, \delta_\mathrm{low}
                + g_\mathrm{high} \, (\delta - \delta_\mathrm{low}), \qquad
        \delta_\mathrm{low} = \mathrm{up}(\mathrm{down}(\delta))

    The paper's scales ``w_l``, ``w_h`` are ``g = (w_k - 1) / (w - 1)`` after ``cfg(w)``: 7.5 (low)
    and 25 (high) are ``cfg(7.5) | bands(24/6.5)``. As factors they leave the scale to the
    terms, whose schedules go on working.

    * Space: linear, so all spaces agree.
    * Split: bilinear with pixel centres matched and no antialiasing, over every dimension behind
      the channels, of any size. It is no projector, but both bands add up exactly.
    * Cost: 0 NFE.
    * Neutral: both factors 1 is bit-identical to no rule.
    * Defaults by family: ``w_l = 7.5``; ``w_h`` 25 to 35 (SDXL), 45 and 35 (SD 2.1 at 1024 and
      2048), from the second stage on; see ``fairlead.stages.frecas``.

    Args:
        high: Factor of what the smaller size cannot show.
        low: Factor of the rest.
        ratio: Size of the stage before, in (0, 1], in units of this one's.

    Raises:
        ValueError: A parameter is out of range; the data has no dimension behind the channels.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) | fl.Bands(3.7))
        'cfg(7.5) | bands(3.7)'

    Source:
        Zhang, Li, Zhang (2024), arXiv:2410.18410.
    """

    high: Annotated[float, FINITE]
    low: Annotated[float, FINITE] = 1.0
    ratio: Annotated[float, Range(0, 1, closed="right")] = 0.5

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.high == self.low:
            return update if self.high == 1 else update * self.high
        if update.ndim < 3:
            raise ValueError(
                "bands: data must have dimensions behind the channels, (B, C, ...), got shape "
                f"{tuple(update.shape)}"
            )
        low = along(update, self._there_and_back)
        return self.high * update + (self.low - self.high) * low

    def _there_and_back(self, n: int) -> Tensor:
        small = max(1, round(n * self.ratio))
        return resize(small, n) @ resize(n, small)
