"""Guidance for people who bring their own predictions."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fairlead.denoiser import level_of, working_dtype
from fairlead.guidance.algebra import Guide, Rows
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Context, Plan, Run
from fairlead.guidance.domains import DOMAINS, NORMALISE, Normalise, enter, leave
from fairlead.guidance.guided import finish, rows_to_evaluate, under_policies
from fairlead.guidance.masks import fitted, require_masks
from fairlead.guidance.spec import guide as parse
from fairlead.parameters import choose, nearest
from fairlead.schedules import Level, NoiseSchedule


def combine(
    guide: Guide | str,
    predictions: Mapping[str, Tensor],
    *,
    x: Tensor | None = None,
    t: float | Tensor | Level | None = None,
    schedule: NoiseSchedule | None = None,
    run: Run | None = None,
    domain: str = "continuous",
    normalise: Normalise | None = None,
    masks: Mapping[str, Any] | None = None,
    tokens: Tensor | None = None,
    rewards: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Tensor:
    """One step of a guide on given predictions, without a network.

    Args:
        guide: A guide or its text.
        predictions: By branch name (`cond`, `null`, `pag`, ...; those that a policy provides are
            not needed), each `(B, ...)`: clean estimates (any prediction space will do where no
            rule measures lengths), or what the domain says over the last dimension.
        x: The noisy sample, for guides that need it.
        t: Its time in the schedule's units: a number, `(B,)`, or a `Level`.
        schedule: The noise schedule that `t` belongs to.
        run: Memory from step to step; each call with it is one step. Default: a fresh one.
        domain: `continuous`; or over a vocabulary, the last dimension: `logprob` and `posterior`
            (log-probabilities in and out), `rates` (rates in and out, combined as logarithms) or
            `simplex` (probabilities in and out, combined as they are).
        normalise: `softmax` (the default of `logprob` and `posterior`), `column` (rates keep the
            total of `cond`), `project` (onto the simplex, the default of `simplex`), or `none`
            (the default of `rates`).
        masks: Masks by name, for guides that act on a region.
        tokens: The tokens before, `(B, n)`, for guides that look at them.
        rewards: Functions that guides score samples with, by name.

    Returns:
        The guided prediction, shaped like one of them, in float32 (float64 if they are).

    Raises:
        ValueError: A branch that the guide asks for is missing, or shares its name with another;
            shapes differ; the guide does not serve the domain; `x`, `t` or `schedule` are needed
            but missing; a row of probabilities adds up to 0.

    Example:
        >>> import torch, fairlead as fl
        >>> c, u = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, -2.0]])
        >>> fl.combine("cfg(3)", {"cond": c, "null": u})
        tensor([[5., 4.]])
    """
    guide = parse(guide)
    choose("combine", "domain", domain, DOMAINS)
    normalise = normalise or NORMALISE[domain][0]
    choose("combine", "normalise", normalise, NORMALISE[domain])
    guide.require(domain)
    if not predictions:
        raise ValueError("combine: predictions are empty; give at least 'cond'")
    predictions = {k: enter(v, domain, k) for k, v in predictions.items()}
    shapes = {k: tuple(v.shape) for k, v in predictions.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"combine: predictions differ in shape: {shapes}")
    first = next(iter(predictions.values()))
    level = t if isinstance(t, Level) or t is None else _level(t, first, schedule)
    run = run or Run(check=False, record=False)
    run.advance()
    run.rewards |= rewards or {}
    if masks is not None:
        run.masks = fitted(masks, first.to(working_dtype(first)))
    require_masks(guide, run)
    ctx = Context(x, level, run, batch=len(first), ndim=first.ndim, like=first)
    ctx.tokens = tokens
    ctx.plan = Plan(guide.base(ctx))
    guide.plan(ctx, (), 1.0, ())
    wanted = rows_to_evaluate(ctx)
    t = float("nan") if level is None else level.t
    run.report.begin(run.step, run.stage, t, wanted, ctx.batch)
    given = under_policies(wanted, ctx, lambda left: _given(left, predictions))
    result = finish(guide, given, ctx).denoise
    return leave(result, domain, normalise, predictions.get("cond"))


def _given(
    wanted: Mapping[Branch, Rows], predictions: Mapping[str, Tensor]
) -> dict[Branch, Tensor]:
    names = [branch.name for branch in wanted]
    for branch in wanted:
        if names.count(branch.name) > 1:
            raise ValueError(
                f"combine: the guide asks for different branches of one name, {branch.name!r}, so "
                "predictions cannot be told apart by name; combine its terms one after another"
            )
        if branch.name not in predictions:
            raise ValueError(
                f"combine: the guide asks for branch {branch.name!r}, which is missing; "
                f"{nearest(branch.name, predictions)}"
            )
    return {b: predictions[b.name].to(working_dtype(predictions[b.name])) for b in wanted}


def _level(t: float | Tensor, like: Tensor, schedule: NoiseSchedule | None) -> Level:
    if schedule is None:
        raise ValueError("combine: t needs the schedule that it belongs to")
    return level_of(schedule, t, like)
