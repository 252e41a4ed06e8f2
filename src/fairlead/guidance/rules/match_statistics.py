"""Matching the mean and spread of each channel, for latents without bounds."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Predictions, Range, Rule, register


@register("match_statistics", ids=("S076",), neutral="0.0")
@dataclass(frozen=True)
class MatchStatistics(Rule):
    r"""Moves mean and standard deviation of each channel to those of the conditional estimate.

    With ``m``, ``s`` the mean and standard deviation of a channel of the guided clean estimate
    ``D``, and ``m*``, ``s*`` their goals:

    .. math::
        D \gets \frac{s + q (s^* - s)}{s} \, (D - m) + m + q (m^* - m)

    The goals are those of the conditional estimate, so that high scales do not make unbounded
    latents louder, where clipping cannot help; or, given as numbers, those of a reference whose
    timbre or style the sample is to take (``MatchStatistics.of``).

    * Space: x0. Unbiased standard deviation, per sample and channel, over all dimensions behind
      the channels.
    * Cost: 0 NFE.
    * Neutral: ``share = 0``. Where no term acts (``w = 1``) the prediction is left as it is.
    * The publication gives no formula: this is what its abstract asks for, a bound on the range
      of unbounded latents and a pull towards a reference. See also ``rescale`` and ``renorm``.

    Args:
        share: The share ``q`` in [0, 1] of the way to the goals.
        mean: Goal of the mean, one number a channel; alone it leaves the deviation as it is.
        std: Goal of the standard deviation, one number a channel, 0 or more; alone it leaves the
            mean as it is.

    Raises:
        ValueError: A parameter is out of range; ``mean`` and ``std``, or the data, differ in
            their number of channels; a channel holds less than two numbers.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(6.0) | fl.MatchStatistics(0.5))
        'cfg(6.0) | match_statistics(share=0.5)'

    Source:
        Pasini, Grachten, Lattner (2024), arXiv:2402.01412; own formula.
    """

    share: Annotated[float, Range(0, 1)] = 1.0
    mean: Annotated[tuple[float, ...] | None, FINITE] = None
    std: Annotated[tuple[float, ...] | None, Range(0, inf, closed="left")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and (not isinstance(value, tuple) or not value):
                raise ValueError(
                    f"match_statistics: {name} must be a list of one number a channel, got {value}"
                )
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ValueError(
                f"match_statistics: std must have {len(self.mean)} numbers, as many as mean, got "
                f"{len(self.std)}"
            )

    @classmethod
    def of(cls, reference: Tensor, share: float = 1.0) -> "MatchStatistics":
        """The rule whose goals are the statistics of a clean reference, `(C, ...)`."""
        flat = reference.double().flatten(1)
        return cls(share, tuple(flat.mean(1).tolist()), tuple(flat.std(1).tolist()))

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if self.share == 0:
            return update
        guided = predictions.base + update
        if guided[0].numel() < 2 * guided.shape[1]:
            raise ValueError(
                "match_statistics: a channel must hold at least two numbers, (B, C, ...), got "
                f"shape {tuple(guided.shape)}"
            )
        own = _statistics(guided)
        if self.mean is None and self.std is None:
            goals = _statistics(predictions.base)
        else:
            goals = (self._goal("mean", own[0]), self._goal("std", own[1]))
        mean, std = own
        spread = std + self.share * (goals[1] - std)
        matched = (guided - mean) * (spread / std.where(std > 0, 1.0))
        return update + (matched + mean + self.share * (goals[0] - mean) - guided)

    def _goal(self, name: str, own: Tensor) -> Tensor:
        given: tuple[float, ...] | None = getattr(self, name)
        if given is None:
            return own
        if len(given) != own.shape[1]:
            raise ValueError(
                f"match_statistics: {name} must have {own.shape[1]} numbers, one a channel, got "
                f"{len(given)}"
            )
        return own.new_tensor(given).reshape(1, -1, *[1] * (own.ndim - 2))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per sample and channel, kept as dimensions of size 1."""
    over = tuple(range(2, x.ndim))
    return x.mean(over, keepdim=True), x.std(over, keepdim=True)
