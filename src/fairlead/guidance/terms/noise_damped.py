"""Noise-damped guidance: the null of a network that denoises better as the base."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from fairlead.guidance.algebra import Context, Range, Term, register
from fairlead.guidance.branch import NULL, Branch
from fairlead.guidance.dilation import Dilation, dilated


@register("noise_damped", ids=("S020",), nfe=2)
@dataclass(frozen=True)
class NoiseDamped(Term):
    r"""Takes the null prediction from a less dilated network, the direction from the dilated one.

    .. math:: D = D_\mathrm{rest} + (D_u^B - D_u^A)

    With ``cfg(w) + noise_damped() | redilate(p)`` this is ``D_u^B + w (D_c^A - D_u^A)``: ``A`` is
    the network that ``redilate`` changes, with the right structure but noisy, ``B`` the one below.

    * Affine, so the same in every space.
    * Cost: 2 NFE beside the conditional one, of which ``cfg`` shares ``D_u^A``; the official code
      spends one more.
    * Without ``redilate`` after it, and with ``factor = 1``, both are the same network.

    Args:
        factor: Dilation of ``B`` >= 1; 1 (none) in most layers of the paper.
        layers: Convolutions of ``B`` that are dilated, as in ``redilate``.
        until: Share of the steps in which it is active; 0.7 in the paper (35 of 50).

    Raises:
        ValueError: A parameter is out of range; a pattern names no convolution (lists them).

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(5.0) + fl.NoiseDamped(until=1.0) | fl.Redilate(2.0))
        'cfg(5.0) + noise_damped(until=1.0) | redilate(2.0)'

    Source:
        He et al. (2023), arXiv:2310.07702.
    """

    factor: Annotated[float, Range(1, math.inf, closed="left")] = 1.0
    layers: str | tuple[str, ...] = "all"
    until: Annotated[float, Range(0, 1)] = 0.7

    @property
    def strength(self) -> float:
        return 1.0

    def strength_at(self, ctx: Context) -> float:
        return 1.0 if ctx.fraction < self.until else 0.0

    @cached_property
    def positive(self) -> Branch:
        return dilated(Branch("damped", state="null"), Dilation(self.layers, self.factor, True))

    @property
    def negative(self) -> Branch:
        return NULL
