"""`fl.sample`: from a denoiser and a guide to samples."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Batching, Evaluator
from fairlead.guidance.guided import GuidedModel, Reward
from fairlead.guidance.masks import fitted
from fairlead.guidance.parallel import Parallel, ParallelEvaluator
from fairlead.guidance.report import Report
from fairlead.guidance.spec import guide as parse
from fairlead.parameters import choose
from fairlead.samplers.base import Sampler
from fairlead.samplers.base import get as get_sampler
from fairlead.samplers.particles import shares
from fairlead.schedules import Level, Spacing


@dataclass(frozen=True)
class Step:
    """What a callback sees after each step.

    Attributes:
        index: Step, from 0.
        steps: Number of steps.
        level: The level that was reached.
        x: The sample there, `(n, ...)`.
        denoised: The last guided clean estimate.
        report: The log so far.
        predictions: The clean estimates of the last evaluation by branch name, those that a
            policy provided among them.
        noises: The noise that each leaves in the sample that was evaluated.
    """

    index: int
    steps: int
    level: Level
    x: Tensor
    denoised: Tensor
    report: Report
    predictions: Mapping[str, Tensor] = field(default_factory=dict)
    noises: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Samples and what they cost.

    Attributes:
        x: `(n, ...)`.
        nfe: Network evaluations of each sample, `(n,)`; a smaller model's count as one too.
        report: Branches, provenance and norms of the terms for each evaluation.
        guide: The guide.
        level: The level of `x`: clean data, unless sampling was interrupted.
        weights: `(n,)` weight of each sample among those under the same condition, adding up
            to 1 there; `None` where all count the same.
    """

    x: Tensor
    nfe: Tensor
    report: Report
    guide: Guide
    level: Level
    weights: Tensor | None = None

    def describe(self) -> Any:
        """The guide's branches and cost, and the norm of each term at each step."""
        return self.guide.describe(self.report)


class Interrupted(KeyboardInterrupt):
    """An interrupt while sampling; `result` holds what there was."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"sampling was interrupted at t = {result.level.t:g}")
        self.result = result


def sample(
    denoiser: Denoiser,
    condition: Mapping[str, Any] | None = None,
    *,
    guide: Guide | str | None = None,
    sampler: Sampler | str = "heun",
    steps: int = 32,
    n: int | None = None,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    first: int = 0,
    spacing: Spacing | None = None,
    levels: Sequence[Level] | None = None,
    negative: Mapping[str, Any] | None = None,
    states: Mapping[str, Mapping[str, Any]] | None = None,
    models: Mapping[str, Denoiser] | None = None,
    energies: Mapping[str, Any] | None = None,
    rewards: Mapping[str, Reward] | None = None,
    masks: Mapping[str, Any] | None = None,
    x: Tensor | None = None,
    reference: Tensor | None = None,
    batching: Batching | Parallel = "batched",
    max_batch: int | None = None,
    checkpoint: bool = False,
    callback: Callable[[Step], None] | None = None,
    progress: bool = False,
    check: bool = True,
    record: bool = True,
    dtype: torch.dtype = torch.float32,
    run: Run | None = None,
) -> Result:
    """Samples from a denoiser under a guide.

    Sample `i` depends on `(seed, first + i)` alone, not on the batch it is drawn in.

    Args:
        denoiser: The model.
        condition: Values by name, each of batch `n`, or one value for all.
        guide: A guide or its text; `None` samples the conditional model.
        sampler: A sampler, its name or its text, such as `ddim(eta=0.5)`.
        steps: Number of steps.
        n: Number of samples, where the denoiser knows the shape of one; default: the
            condition's batch, else 1.
        shape: Shape of the whole batch, instead of `n`.
        seed: Seed of all random draws.
        first: Index of the first sample.
        spacing: How the levels are spread; default: the schedule's own.
        levels: The levels to walk, noisiest first, instead of a grid of `steps`.
        negative: Negative condition: short for `states={"negative": ...}`.
        states: Further conditions by name, for branches that ask for them. A name that one of
            them lacks keeps the value of `condition`; an empty one asks for nothing.
        models: Further denoisers by name, such as `weak`.
        energies: Energies by name (`fl.energy`, or functions of a clean estimate), for guides that
            ask for one by name.
        rewards: Functions from clean samples `(n, ...)` to scores `(n,)`, for samplers that
            choose among samples, such as `steering`.
        masks: Masks by name, for guides that act on a region, in [0, 1]: shaped like one sample,
            or like the batch, sizes of 1 where they do not change.
        x: Where to start, at the first level, instead of noise.
        reference: Clean samples that the guide refers to, such as the images that are edited;
            as many as are drawn, or one for all.
        batching: `batched`: branches that share a model in one call; `sequential`: one call a
            branch; `parallel`, or a `Parallel`: branches on the processes of `torch.distributed`,
            all of which call this with the same arguments.
        max_batch: Most rows in one network call.
        checkpoint: Whether guides that differentiate the network compute it again, call by call,
            in the backward pass: with `max_batch` the memory is that of one call's graph.
        callback: Called with a `Step` after each step.
        progress: Whether to show a progress bar.
        check: Whether a NaN or infinity raises, naming branch and step.
        record: Whether the report keeps the norm of each term at each step.
        dtype: `float32`, or `float64`.
        run: Memory to go on with; its own seed, indices, steps, energies, masks, reference,
            `check` and `record` count. Default: a fresh one.

    Returns:
        A `Result` with `.x`, `.nfe` and `.report`.

    Raises:
        ValueError: An argument is out of range, or does not fit the model or the guide.
        FloatingPointError: A prediction is NaN or infinite.
        Interrupted: Ctrl-C; carries the partial result.

    Example:
        >>> import torch, fairlead as fl
        >>> p = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
        >>> d = p.denoiser(fl.schedules.EDM())
        >>> out = fl.sample(d, {"label": [0, 1]}, guide="cfg(2)", steps=8)
        >>> out.x.shape, out.nfe.tolist()
        (torch.Size([2, 1]), [30, 30])
    """
    guide = parse(guide)
    rule = get_sampler(sampler)
    if not isinstance(batching, Parallel):
        choose("sample", "batching", batching, ("batched", "sequential", "parallel"))
    for name, value in (("steps", steps), ("max_batch", max_batch), ("n", n)):
        absent = value is None and name != "steps"
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (whole or absent):
            raise ValueError(f"sample: {name} must be a whole number of at least 1, got {value}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"sample: dtype must be torch.float32 or torch.float64, got {dtype}")
    guide.require("continuous")
    refuse_tokens("sample", denoiser)
    require_differentiable("fl.sample", guide)
    given = {"cond": condition or {}, **(states or {})}
    if negative is not None:
        given["negative"] = negative
    conditions = {k: Condition({**given["cond"], **v} if v else v) for k, v in given.items()}
    size = _shape(denoiser, conditions, n, shape, x)
    device = denoiser.device or torch.device("cpu")
    conditions = {k: c.expand(size[0]).to(device) for k, c in conditions.items()}
    for given_condition in conditions.values():
        denoiser.check(given_condition)
    if levels is None:
        levels = denoiser.schedule.grid(steps, spacing)
    check_levels("sample: ", levels)
    like = torch.empty(size, dtype=dtype, device=device)
    if reference is not None:
        if tuple(reference.shape) not in (size, (1, *size[1:])):
            raise ValueError(
                f"sample: reference must have the shape of the samples {size}, or of one, "
                f"got {tuple(reference.shape)}"
            )
        reference = reference.to(device, dtype).expand(size)
    if run is None:
        run = Run(
            seed,
            range(first, first + size[0]),
            len(levels) - 1,
            check=check,
            record=record,
            levels=levels,
            energies=energies,
            masks=fitted(masks or {}, like),
            reference=reference,
        )
    options: dict[str, Any] = {"max_batch": max_batch, "checkpoint": checkpoint}
    if batching == "parallel" or isinstance(batching, Parallel):
        spread = batching if isinstance(batching, Parallel) else Parallel()
        evaluator: Evaluator = ParallelEvaluator(
            denoiser, conditions, models, parallel=spread, **options
        )
    else:
        evaluator = Evaluator(denoiser, conditions, models, batching=batching, **options)
    run.rewards |= rewards or {}
    model = GuidedModel(guide, evaluator, run)
    model.check()
    rule.check(model)
    if x is None:
        x = levels[0].sigma * run.normal(like, "start")
    else:
        x = x.to(device, dtype)
        x = x.clone() if x.is_inference() else x
    reached, began = levels[0], time.perf_counter()
    try:
        with torch.no_grad(), _bar(progress, len(levels) - 1) as tick:
            for s, t in pairwise(levels):
                model.begin(s)
                x = rule.walk(model, x, s, t)
                reached = t
                tick()
                if callback is not None:
                    denoised = model.last.denoise if model.last else x
                    seen = _seen(model)
                    callback(Step(run.step, run.steps, t, x, denoised, run.report, *seen))
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, Interrupted):
            raise
        raise Interrupted(_result(x, model, reached)) from None
    run.report.seconds = time.perf_counter() - began
    return _result(x, model, reached)


def refuse_tokens(owner: str, denoiser: Denoiser) -> None:
    """Refuses a denoiser of tokens where images are drawn.

    Raises:
        ValueError: Says what draws tokens.
    """
    if hasattr(denoiser, "process"):
        raise ValueError(
            f"{owner}: this model predicts tokens; use fl.discrete.sample, or for molecules "
            "`fairlead molecules`"
        )


def require_differentiable(owner: str, guide: Guide) -> None:
    """Refuses gradients under `torch.inference_mode`.

    Raises:
        RuntimeError: Says what to do.
    """
    gradients = [n for n in guide.nodes() if getattr(n, "gradient", False)]
    if gradients and torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{gradients[0].name}: gradients cannot be taken under torch.inference_mode; call "
            f"{owner} outside of it, or inside `with torch.inference_mode(False):` (it keeps no "
            "graph by itself)"
        )


def _seen(model: GuidedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clean estimates and noises of the last evaluation, by branch name."""
    if model.predictions is None or model.ctx is None:
        return {}, {}
    clean = {b.name: v for b, v in model.predictions.values_by_branch.items()}
    return clean, {k: model.ctx.noise(v) for k, v in clean.items()}


def _result(x: Tensor, model: GuidedModel, level: Level) -> Result:
    report = model.run.report
    nfe = torch.as_tensor(report.nfe).expand(len(x)).cpu()
    log_weights = model.carried.get("log_weights")
    weights = None if log_weights is None else shares(log_weights, model.groups)
    return Result(x, nfe, report, model.guide, level, weights)


def check_levels(owner: str, levels: Sequence[Level]) -> None:
    """Refuses levels that a sampler cannot walk."""
    rises = [b.log_snr > a.log_snr for a, b in pairwise(levels)]
    if not rises or not all(rises):
        raise ValueError(
            f"{owner}levels must be at least two, each less noisy than the one before, got "
            f"t = {', '.join(f'{level.t:g}' for level in levels)}"
        )


def _shape(
    denoiser: Denoiser,
    conditions: Mapping[str, Condition],
    n: int | None,
    shape: tuple[int, ...] | None,
    x: Tensor | None,
) -> tuple[int, ...]:
    if x is not None:
        return tuple(x.shape)
    if shape is not None:
        if n is not None and n != shape[0]:
            raise ValueError(f"sample: n = {n} contradicts shape = {tuple(shape)}")
        if denoiser.shape is not None and tuple(shape[1:]) != denoiser.shape:
            raise ValueError(
                f"sample: shape must end in {denoiser.shape}, the shape of the model's samples, "
                f"got {tuple(shape)}"
            )
        return tuple(shape)
    if denoiser.shape is None:
        raise ValueError("sample: this denoiser does not know the shape of a sample; give shape=")
    batches = [c.batch for c in conditions.values() if c.batch not in (None, 1)]
    return (n or (batches[0] if batches else 1) or 1, *denoiser.shape)


class _bar:
    """A progress bar, or nothing."""

    def __init__(self, show: bool, steps: int) -> None:
        self.show, self.steps = show, steps

    def __enter__(self) -> Callable[[], None]:
        if not self.show:
            return lambda: None
        from rich.progress import Progress

        self.progress = Progress(transient=True)
        self.progress.start()
        task = self.progress.add_task("sampling", total=self.steps)
        return lambda: self.progress.advance(task)

    def __exit__(self, *_: object) -> None:
        if self.show:
            self.progress.stop()
