"""Static and dynamic thresholding."""

from dataclasses import dataclass
from math import inf
from typing import Annotated

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Predictions, Range, Rule, register


@register("threshold", ids=("XC5", "S088"))
@dataclass(frozen=True)
class Threshold(Rule):
    r"""Keeps the guided clean estimate in the range of the data, [-1, 1].

    .. math::
        D \gets \mathrm{clip}(D, -s, s) / s, \qquad
        s = \min(\max(1, Q_p(|D|)), s_\mathrm{max})

    with ``Q_p`` the ``p``-quantile over a sample. ``ceiling = 1`` is the static form,
    ``clip(D, -1, 1)``.

    * Space: x0, for data in [-1, 1]; it says nothing about unbounded latents. Samplers take the
      noise from the new ``D``, as they must: with the old noise samples come out negated.
    * Cost: 0 NFE.
    * Neutral: none; where ``|D| <= 1`` already, nothing changes to the bit. Where no term acts
      (``w = 1``) the prediction is left as it is.
    * Defaults by family: pixel models 0.995 (Imagen; up to 0.9995).

    Args:
        p: Quantile in [0, 1]; at 1 the sample is divided by its largest value and nothing is
            clipped.
        ceiling: Largest ``s``, at least 1; 1 is static, no limit is the paper's dynamic form
            (diffusers' schedulers take 1 unless told otherwise).

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(8.0) | fl.Threshold(0.995))
        'cfg(8.0) | threshold()'

    Source:
        Saharia et al. (2022), arXiv:2205.11487, section 2.3; as dynamic clipping in Ho et
        al. (2022), arXiv:2210.02303.
    """

    p: Annotated[float, Range(0, 1)] = 0.995
    ceiling: Annotated[float, Range(1, inf)] = inf

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        guided = predictions.base + update
        if self.ceiling == 1:
            bounded = guided.clamp(-1, 1)
        else:
            s = quantile(guided.abs().flatten(1), self.p).clamp(1, self.ceiling)
            s = s.reshape(-1, *[1] * (guided.ndim - 1))
            bounded = guided.clamp(-s, s) / s
        return update + (bounded - guided)


def quantile(x: Tensor, p: float) -> Tensor:
    """The `p`-quantile of each row, interpolated; `torch.quantile` refuses large batches."""
    ordered = x.sort(1).values
    at = p * (x.shape[1] - 1)
    low = int(at)
    high = min(low + 1, x.shape[1] - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], at - low)
