"""A method of your own in one file: a rule that halves the update, checked for conformance."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

import fairlead as fl
from fairlead.guidance.algebra import Context, Predictions, Range, Rule, register
from fairlead.testing import check_guide


@register("halve", neutral="1.0")
@dataclass(frozen=True)
class Halve(Rule):
    r"""Scales what the terms before it add.

    .. math:: D = D_c + k \, (D_w - D_c)

    * Space: any, it is linear.
    * Cost: 0 NFE.
    * Neutral: ``k = 1``.

    Args:
        k: Share of the update that stays, in [0, 1].

    Raises:
        ValueError: ``k`` is out of range.

    Example:
        >>> str(fl.CFG(4.0) | Halve(0.25))
        'cfg(4.0) | halve(k=0.25)'
    """

    k: Annotated[float, Range(0, 1)] = 0.5

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        return update if self.k == 1 else self.k * update


if __name__ == "__main__":
    print(fl.CFG(4.0) | Halve(0.25))
    for outcome in check_guide(Halve, skip=("compile",)):
        print(f"{outcome.check}: {outcome.status} {outcome.reason}")
