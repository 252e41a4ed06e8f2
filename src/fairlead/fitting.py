"""Numbers that methods need before they can run: fitted once on a few trajectories."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.guidance.policies.linear import LinearGuidance, regress
from fairlead.guidance.policies.rows import wanted_below
from fairlead.guidance.spec import guide as parse
from fairlead.samplers.base import Sampler, transfer
from fairlead.samplers.base import get as get_sampler
from fairlead.samplers.dc import DC
from fairlead.samplers.unipc import Point
from fairlead.sampling import Step, sample
from fairlead.schedules import Level, NoiseSchedule, Spacing


def fit_linear(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    guide: Guide | str,
    sampler: Sampler | str = "ddim",
    steps: int = 20,
    end: float = 0.5,
    **options: Any,
) -> LinearGuidance:
    """Fits the coefficients of `linear` on trajectories of the plain guide.

    Args:
        denoiser: The model.
        condition: Conditions of the trajectories; the paper takes about 200.
        guide: The guide that will be made cheaper, such as `cfg(7.5)`.
        sampler: The sampler that it will run under, of one evaluation a step.
        steps: Number of steps that it will run.
        end: Share of the steps after which the terms are off.
        **options: As for `fl.sample`: `n`, `seed`, `negative` and so on.

    Returns:
        The policy: `guide | policy`.

    Raises:
        ValueError: The sampler takes several evaluations a step, or the guide wants no or
            several branches beside the base.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
        >>> d = p.denoiser(fl.schedules.VP())
        >>> label = {"label": torch.arange(20) % 2}
        >>> policy = fl.fit_linear(d, label, guide="cfg(2)", steps=8)
        >>> out = fl.sample(d, label, guide=fl.CFG(2.0) | policy, steps=8, sampler="ddim")
        >>> out.nfe[0].item()
        10
    """
    guide, rule = parse(guide), get_sampler(sampler)
    if rule.evaluations != 1:
        raise ValueError(
            f"fit_linear: needs a sampler of one evaluation a step, got {rule} of "
            f"{rule.evaluations}; take ddim or dpmpp_2m"
        )
    LinearGuidance().admit(guide)
    other = wanted_below(guide)[0].name
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])

    def keep(step: Step) -> None:
        for name, kept in zip(("cond", other), seen, strict=True):
            if name not in step.noises:
                raise ValueError(f"fit_linear: {guide} does not evaluate {name!r} at every step")
            kept.append(step.noises[name])

    sample(denoiser, condition, guide=guide, sampler=rule, steps=steps, callback=keep, **options)
    return LinearGuidance(regress(*seen, end=end), end, steps)


def search_ratios(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    guide: Guide | str,
    steps: int,
    sampler: DC | str = "dc",
    shape: tuple[int, ...] | None = None,
    spacing: Spacing | None = None,
    seed: int = 0,
    finer: int = 20,
    iterations: int = 40,
    rate: float = 0.1,
    bounded: bool = False,
    dtype: torch.dtype = torch.float32,
) -> DC:
    """Searches the compensation ratios of `dc`, step by step, on a few samples.

    Each ratio in turn is moved by AdamW so that the point after its step, corrected, comes near
    to that of a fine DDIM trajectory from the same noise; the best one met is kept, and 1 is the
    first. A step costs one evaluation with a gradient an iteration.

    Args:
        denoiser: The model; gradients pass through it.
        condition: Conditions of the samples; the paper takes 10.
        guide: The guide.
        steps: Number of steps.
        sampler: Order, compensation and variable of the solver.
        shape: Shape of the batch, where the denoiser does not know that of a sample.
        spacing: As for `fl.sample`.
        seed: Seed of the noise.
        finer: Steps of the trajectory for each step of the solver.
        iterations: Iterations a ratio.
        rate: Learning rate.
        bounded: Keep ratios in (0.5, 1.5), as `1 + tanh(theta) / 2`.
        dtype: `float32` or `float64`.

    Returns:
        The sampler with its ratios.

    Raises:
        ValueError: The sampler is not `dc`.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
        >>> d = p.denoiser(fl.schedules.VP())
        >>> dc = fl.search_ratios(d, {"label": [0, 1]}, guide="cfg(3)", steps=5, iterations=2)
        >>> len(dc.ratios)
        3
    """
    found, solver = parse(guide), get_sampler(sampler)
    if not isinstance(solver, DC):
        raise ValueError(f"search_ratios: the sampler must be dc, got {solver}")
    given = Condition(condition)
    size = shape or (given.batch or 1, *(denoiser.shape or ()))
    device = denoiser.device or torch.device("cpu")
    states = {"cond": given.expand(size[0]).to(device)}
    schedule = denoiser.schedule
    levels = schedule.grid(steps, spacing)
    run = Run(seed, range(size[0]), steps, record=False)
    model = GuidedModel(found, Evaluator(denoiser, states), run)
    model.check()
    start = levels[0].sigma * run.normal(torch.empty(size, dtype=dtype, device=device), "start")
    with torch.no_grad():
        targets = _trajectory(model, start, levels, finer)
    run = Run(seed, range(size[0]), steps, record=False)
    model = GuidedModel(found, Evaluator(denoiser, states), run)
    x, ratios = start, list[float]()
    for i, (s, t) in enumerate(pairwise(levels)):
        if i >= 2:
            with torch.no_grad():
                model.begin(s)
                corrected, points, order = solver.prepared(model, x, s, t)
            best, least = 1.0, float("inf")
            theta = torch.zeros((), dtype=torch.float64, device=device, requires_grad=True)
            optimiser = torch.optim.AdamW([theta], lr=rate, weight_decay=0.0)
            for _ in range(iterations):
                with torch.enable_grad():
                    ratio = 1 + (theta.tanh() / 2 if bounded else theta)
                    moved = solver.compensated(points, ratio.to(dtype))
                    reached = solver.advance(corrected, moved, t, order)
                    if i < steps - 1:
                        new = Point(t, model(reached, t))
                        reached = solver.advance(corrected, moved, t, order, new)
                    loss = (reached - targets[i]).square().mean()
                if loss.item() < least:
                    best, least = ratio.item(), loss.item()
                if not loss.requires_grad:  # too few points to move the newest
                    break
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            ratios.append(best)
            run.step -= 1  # the step is taken again, with the ratio that was found
        solver = replace(solver, ratios=tuple(ratios))
        model.begin(s)
        with torch.no_grad():
            x = solver.step(model, x, s, t)
    return solver


def _trajectory(model: GuidedModel, x: Tensor, levels: list[Level], finer: int) -> list[Tensor]:
    """Where DDIM with `finer` steps in each step is at the end of each."""
    reached = []
    for s, t in pairwise(levels):
        model.begin(s)
        for a, b in pairwise([s, *_between(model.schedule, s, t, finer), t]):
            x = transfer(x, model(x, a), a, b)
        reached.append(x)
    return reached


def _between(schedule: NoiseSchedule, s: Level, t: Level, parts: int) -> list[Level]:
    """Levels inside a step: even in log-SNR, or in time where that is infinite."""
    shares = [k / parts for k in range(1, parts)]
    if s.alpha > 0 and t.sigma > 0:
        return [schedule.level_at(s.log_snr + share * (t.log_snr - s.log_snr)) for share in shares]
    return [schedule.level(s.t + share * (t.t - s.t)) for share in shares]
