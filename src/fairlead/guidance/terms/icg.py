"""Independent condition guidance."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Scale, Term, less_one, register
from fairlead.guidance.branch import Branch, Transform
from fairlead.parameters import choose

if TYPE_CHECKING:
    from fairlead.guidance.context import Context

Draw = Literal["index", "gaussian"]


@dataclass(frozen=True)
class Independent(Transform):
    """Replaces every condition by one drawn independently of the sample, anew each step."""

    draw: Draw

    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: "Context") -> Condition:
        if self.draw == "gaussian":
            condition = denoiser.embed(condition)
        made = {}
        for name, value in condition.items():
            if not value.is_floating_point():
                if name not in denoiser.choices:
                    raise ValueError(
                        f"icg: the number of values of {name!r} is not known: give "
                        f"Denoiser(choices={{{name!r}: N}}), or use draw='gaussian'"
                    )
                drawn = ctx.run.integers(len(value), denoiser.choices[name], f"icg {name}")
                made[name] = drawn.to(value).reshape(-1, *[1] * (value.ndim - 1)).expand_as(value)
            else:
                over = tuple(range(1, value.ndim))
                mean, std = value.mean(over, keepdim=True), value.std(over, keepdim=True)
                made[name] = mean + std * ctx.normal(value, f"icg {name}")
        return condition.replace(**made)


@register("icg", ids=("S001",), nfe=1, neutral="1.0")
@dataclass(frozen=True)
class ICG(Term):
    r"""CFG for a model that never saw a null condition.

    A condition ``c^`` drawn independently of the sample, anew each step, stands in for null:

    .. math:: D = D_{\hat c} + w (D_c - D_{\hat c})

    * Cost: 1 NFE beside the conditional one. The draw is a function of seed, sample and step,
      so the stages of one step see the same.
    * Neutral: ``w = 1``; a draw that equals ``c`` contributes nothing.

    Args:
        w: Guidance scale, as for CFG; one number, or one a sample.
        draw: ``index``, a uniformly random element of an index condition (floating-point
            conditions are drawn as for ``gaussian``); or ``gaussian``, normal noise in the
            embedding space with the mean and standard deviation of the real embedding.

    Raises:
        ValueError: ``w`` is NaN or infinite; the model does not say how many values its
            condition has, or which module embeds it.

    Example:
        >>> import fairlead as fl
        >>> str(fl.ICG(2.0, draw="gaussian"))
        "icg(2.0, draw='gaussian')"

    Source:
        Sadat, Kansy, Hilliges, Weber (2024), arXiv:2407.02687.
    """

    w: Scale
    draw: Draw = "index"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("icg", "draw", self.draw, ("index", "gaussian"))

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return less_one(self.w)

    @cached_property
    def negative(self) -> Branch:
        return Branch("icg", transforms=(Independent(self.draw),))
