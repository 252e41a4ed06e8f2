"""A scheduler's step under guides whose prediction has two ends."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

from fairlead.adapters.diffusers import inputs
from fairlead.guidance.algebra import Guide
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

NOISY = ("eta", "s_churn")
"""Arguments of calls and steps that make such a step a stochastic one, where they are not 0."""


def both_ends(session: "Session", step: Callable[..., Any]) -> Callable[..., Any]:
    r"""The step towards one clean estimate with the noise of another.

    A scheduler's step is affine in the clean estimate `D` and the noise that belongs to it, with
    weights `alpha'` and `sigma'` of the next level. It is made at the end that renoises, which
    histories of multistep solvers keep, and the estimate is exchanged afterwards:
    `x' + alpha' (D_denoise - D_renoise)`.
    """
    signature = inspect.signature(step)

    @wraps(step)  # pipelines look at its signature to see what it takes
    def stepped(*args: Any, **kwargs: Any) -> Any:
        ends, levels = session.ends, session.levels
        if ends is None or ends.denoise is ends.renoise or levels is None:
            return step(*args, **kwargs)
        churn = _filled(signature, args, kwargs).get("s_churn")
        if churn:
            raise ValueError(
                f"steer: {session.guide} renoises with another prediction than it denoises with, "
                f"and s_churn={churn} moves the step's noise level away from the one that both "
                "belong to; leave out s_churn"
            )
        later = levels.following(session.time)
        output = step(*args, **kwargs)
        x = inputs.prediction(output)
        moved = (later.level.alpha * later.latents) * (ends.denoise - ends.renoise)
        session.ends = None
        return inputs.replaced(output, x + moved.reshape(x.shape).to(x.dtype))

    return stepped


def corrected(session: "Session", step: Callable[..., Any]) -> Callable[..., Any]:
    """The step from the sample that was moved, by a corrector or the guide, as it must be told."""
    sampler = session.setting.sampler
    if sampler is None and not session.moving:
        return step
    signature = inspect.signature(step)

    @wraps(step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        if sampler is not None:
            _require_quiet(sampler, _filled(signature, args, kwargs))
        delta, session.correction = session.correction, None
        if delta is None:
            return step(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        x = bound.arguments["sample"]
        bound.arguments["sample"] = (x + delta.reshape(x.shape)).to(x.dtype)
        return step(*bound.args, **bound.kwargs)

    return stepped


def require_order(guide: Guide, scheduler: Any) -> None:
    """Refuses guides of two ends, or that move the sample, where a step has several evaluations.

    Raises:
        ValueError: Names the term and the scheduler.
    """
    order = getattr(scheduler, "order", 1)
    pndm = type(scheduler).__name__ == "PNDMScheduler"
    if pndm and not scheduler.config.skip_prk_steps:
        order = 4  # its first steps are of Runge-Kutta's method
    for node in guide.nodes():
        moves = getattr(node, "moves", False)
        if order == 1 and not (moves and pndm):  # whose second step goes on from the first sample
            continue
        if moves or getattr(node, "claims_renoise", False) or getattr(node, "apart", False):
            does = "renoises with another prediction than it denoises with"
            if moves:
                does = "moves the sample before each step"
            raise ValueError(
                f"steer: {node} {does}, and {type(scheduler).__name__} evaluates "
                f"{max(order, 2)} times a step; take a scheduler of order 1"
            )


def _filled(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a step by name, with defaults: also those that `functools.partial` set."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def require_predictor(sampler: PCG, scheduler: Any, given: Mapping[str, Any]) -> None:
    """Refuses schedulers whose step is not the conditional step that a corrector follows.

    Args:
        sampler: The sampler.
        scheduler: The pipeline's scheduler.
        given: Arguments of the pipeline's call.

    Raises:
        ValueError: Names the scheduler and those that serve, or what makes its step a noisy one.
    """
    if type(scheduler).__name__ not in PREDICTORS:
        raise ValueError(
            f"steer: {sampler} corrects steps of first order without noise or history, and the "
            f"pipeline has a {type(scheduler).__name__}; take one of {', '.join(PREDICTORS)}"
        )
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"steer: {sampler} corrects steps without noise, and the pipeline's "
            f"{type(scheduler).__name__} has stochastic_sampling=True; set it to False: "
            "type(scheduler).from_config(scheduler.config, stochastic_sampling=False)"
        )
    _require_quiet(sampler, given)


def _require_quiet(sampler: PCG, given: Mapping[str, Any]) -> None:
    """Refuses arguments that add noise to a step.

    Raises:
        ValueError: Names the argument.
    """
    for name in NOISY:
        if given.get(name):
            raise ValueError(
                f"steer: {sampler} corrects steps without noise, and {name}={given[name]} makes "
                f"them noisy; leave out {name}, or the sampler"
            )
