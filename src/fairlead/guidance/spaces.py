"""Rules that measure in another space than x0."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from fairlead.guidance.context import Context
from fairlead.parameters import choose
from fairlead.prediction import direction_scale, from_x0

Space = Literal["sample", "epsilon", "v_prediction", "flow_prediction"]
SPACES = ("sample", "epsilon", "v_prediction", "flow_prediction")


def check_space(owner: str, space: str) -> None:
    """Refuses an unknown space."""
    choose(owner, "space", space, SPACES)


def in_space(
    space: Space, base: Tensor, update: Tensor, ctx: Context
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A prediction and an update in a space, and the way back for an update.

    Raises:
        ValueError: The space needs `x` and the noise level, and there are none.
    """
    if space == "sample":
        return base, update, lambda u: u
    alpha, sigma = ctx.alpha, ctx.sigma
    if ctx.x is None:
        raise ValueError("combine: this guide needs the noisy sample; give x, t and schedule")
    scale = direction_scale(alpha, sigma, space)
    return from_x0(base, ctx.x, alpha, sigma, space), update * scale, lambda u: u / scale
