"""A scheduler's step under guides whose prediction has two ends."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from fairlead.adapters.diffusers import inputs
from fairlead.samplers.pcg import PCG

if TYPE_CHECKING:
    from fairlead.adapters.diffusers.session import Session

PREDICTORS = (
    "DDIMScheduler",
    "CogVideoXDDIMScheduler",
    "EulerDiscreteScheduler",
    "EDMEulerScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
"""Schedulers whose step is the one that predictor-corrector guidance starts from."""


def both_ends(session: "Session", step: Callable[..., Any]) -> Callable[..., Any]:
    r"""The step towards one clean estimate with the noise of another.

    A scheduler's step is affine in the clean estimate `D` and the noise that belongs to it, with
    weights `alpha'` and `sigma'` of the next level. It is made at the end that renoises, which
    histories of multistep solvers keep, and the estimate is exchanged afterwards:
    `x' + alpha' (D_denoise - D_renoise)`.
    """

    @wraps(step)  # pipelines look at its signature to see what it takes
    def stepped(*args: Any, **kwargs: Any) -> Any:
        ends, levels = session.ends, session.levels
        if ends is None or ends.denoise is ends.renoise or levels is None:
            return step(*args, **kwargs)
        order = getattr(session.setting.pipe.scheduler, "order", 1)
        if order != 1:
            raise ValueError(
                f"steer: {session.guide} renoises with another prediction than it denoises with, "
                f"and {type(session.setting.pipe.scheduler).__name__} evaluates {order} times a "
                "step; take a scheduler of order 1"
            )
        later = levels.following(session.time)
        output = step(*args, **kwargs)
        x = inputs.prediction(output)
        moved = (later.level.alpha * later.latents) * (ends.denoise - ends.renoise)
        session.ends = None
        return inputs.replaced(output, x + moved.reshape(x.shape).to(x.dtype))

    return stepped


def corrected(session: "Session", step: Callable[..., Any]) -> Callable[..., Any]:
    """The step from the sample that a corrector moved, of which the pipeline does not know."""
    signature = inspect.signature(step)

    @wraps(step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        delta, session.correction = session.correction, None
        if delta is None:
            return step(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        x = bound.arguments["sample"]
        bound.arguments["sample"] = (x + delta.reshape(x.shape)).to(x.dtype)
        return step(*bound.args, **bound.kwargs)

    return stepped


def require_predictor(sampler: PCG, scheduler: Any) -> None:
    """Refuses schedulers whose step is not the conditional step that a corrector follows.

    Raises:
        ValueError: Names the scheduler and those that serve.
    """
    if type(scheduler).__name__ not in PREDICTORS:
        raise ValueError(
            f"steer: {sampler} corrects steps of first order without noise or history, and the "
            f"pipeline has a {type(scheduler).__name__}; take one of {', '.join(PREDICTORS)}"
        )
