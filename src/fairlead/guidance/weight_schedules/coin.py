"""A coin for each step: terms that are there only by chance."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fairlead.guidance.algebra import Context, Range, Schedule, register
from fairlead.guidance.context import Weight
from fairlead.parameters import choose


@register("coin", ids=("S094", "S099"), neutral="1.0")
@dataclass(frozen=True)
class Coin(Schedule):
    r"""Keeps the terms before it in some steps, chosen at random, and leaves them out of the rest.

    .. math:: w \gets w \, [R < p], \qquad R \sim U(0, 1) \text{ for each step}

    Two terms under the two sides of one coin alternate: ``(a | coin(0.3)) + (b | coin(0.3,
    tails=True))`` has one of them in every step. Draws are a function of the run's seed, the step
    and ``key`` alone, not of the sampler's noise; all stages of a step see the same.

    * Cost: where it falls to the other side the terms cost nothing.
    * Neutral: ``p = 1``.

    Args:
        p: Probability of heads, in [0, 1].
        tails: Whether the terms are kept on the other side.
        per: ``batch``: one coin for all samples; or ``sample``: each has its own, so that what
            chance does is not common to them.
        key: Name of the coin; coins of one name fall alike.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(4.0) | fl.Coin(0.5))
        'cfg(4.0) | coin(0.5)'

    Source:
        Chen, Hu, Saharia, Cohen (2022), arXiv:2209.14491; Zhang et al. (2023), arXiv:2304.01116.
    """

    p: Annotated[float, Range(0, 1)]
    tails: bool = False
    per: Literal["batch", "sample"] = "batch"
    key: str = "coin"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("coin", "per", self.per, ("batch", "sample"))

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        drawn = ctx.run.uniform(None if self.per == "batch" else ctx.batch, self.key)
        kept = [(r < self.p) != self.tails for r in drawn]
        if all(kept):
            return weight
        if not any(kept) or (isinstance(weight, float) and weight == 0.0):
            return 0.0
        return weight * ctx.per_sample([float(k) for k in kept])
