"""Frequency-decoupled guidance (FDG)."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Predictions, Rule, project, register
from fairlead.guidance.resample import along, blur, resize
from fairlead.guidance.spaces import Space, check_space, in_space


@register("frequency", ids=("XC4",), neutral="[1.0, 1.0]")
@dataclass(frozen=True)
class Frequency(Rule):
    r"""Guides low and high frequencies by different scales (FDG).

    With ``delta`` the update, ``l_k`` the bands of a Laplacian pyramid, ``k = 0`` the finest, and
    ``up^k`` what brings band ``k`` to full size:

    .. math::
        D = D_c + \sum_k \mathrm{up}^k \, g_k \bigl( l_k(\delta)_\perp
            + \eta_k \, l_k(\delta)_\parallel \bigr),

    where the parallel part is the projection on ``l_k(D_c)``, per sample and band. The paper's
    scales ``w_k`` are ``g_k = (w_k - 1) / (w - 1)`` after ``cfg(w)``: 10 (high) and 5 (low) are
    ``cfg(10) | frequency([1, 4/9])``. As factors they leave the scale to the terms, whose
    schedules go on working.

    * Space: x0 unless ``space`` says otherwise. With ``eta = 1`` the rule is linear and all
      spaces agree.
    * Pyramid: binomial blur of 5 taps over every dimension behind the channels, reflected at
      the edges, and bilinear halving. Any size: the sum of the bands is exact.
    * Cost: 0 NFE.
    * Neutral: gains of 1 with ``eta = 1`` are bit-identical to no rule.
    * Defaults by family: SDXL ``w_high = 10``, ``w_low = 5``.

    Args:
        gains: Factor of each band, from the finest to the coarsest; their number is that of the
            levels.
        eta: Share of the parallel part that stays, as in ``APG``: one, or one a band.
        space: Space in which bands are projected: ``sample`` (x0), ``epsilon``, ``v_prediction``
            or ``flow_prediction``.

    Raises:
        ValueError: A parameter is out of range; ``eta`` has another length than ``gains``; the
            data has no dimension behind the channels.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(10.0) | fl.Frequency([1.0, 0.5]))
        'cfg(10.0) | frequency([1.0, 0.5])'

    Source:
        Sadat, Vontobel, Salehi, Weber (2025), arXiv:2506.19713.
    """

    gains: Annotated[tuple[float, ...], FINITE]
    eta: Annotated[float | tuple[float, ...], FINITE] = 1.0
    space: Space = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_space("frequency", self.space)
        if not isinstance(self.gains, tuple) or not self.gains:
            raise ValueError(
                f"frequency: gains must be a list of one factor a band, got {self.gains!r}"
            )
        if isinstance(self.eta, tuple) and len(self.eta) != len(self.gains):
            raise ValueError(
                f"frequency: eta must be one number or {len(self.gains)}, as many as gains, "
                f"got {len(self.eta)}"
            )

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        etas = self.eta if isinstance(self.eta, tuple) else (self.eta,) * len(self.gains)
        plain = all(eta == 1 for eta in etas)
        if plain and len(set(self.gains)) == 1:
            return update if self.gains[0] == 1 else update * self.gains[0]
        if update.ndim < 3:
            raise ValueError(
                "frequency: data must have dimensions behind the channels, (B, C, ...), got shape "
                f"{tuple(update.shape)}"
            )
        base, update, back = in_space(self.space, predictions.base, update, ctx)
        bands = pyramid(update, len(self.gains))
        if not plain:
            own = pyramid(base, len(self.gains))
            bands = [
                d - (1 - eta) * project(d, onto=c)
                for d, c, eta in zip(bands, own, etas, strict=True)
            ]
        return back(collapse([g * d for g, d in zip(self.gains, bands, strict=True)]))


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """The bands of `x`, `(B, C, ...)`, from the finest to the coarsest."""
    bands = []
    for _ in range(levels - 1):
        coarse = along(x, lambda n: resize(n, _half(n)) @ blur(n))
        bands.append(x - _up(coarse, x))
        x = coarse
    return [*bands, x]


def collapse(bands: list[Tensor]) -> Tensor:
    """The sum of bands, each brought to the size of the next finer one: inverse of `pyramid`."""
    x = bands[-1]
    for band in reversed(bands[:-1]):
        x = _up(x, band) + band
    return x


def _half(n: int) -> int:
    return max(1, n // 2)


def _up(x: Tensor, like: Tensor) -> Tensor:
    sizes = iter(like.shape[2:])

    def matrix(n: int) -> Tensor:
        size = next(sizes)
        return blur(size) @ resize(n, size)

    return along(x, matrix)
