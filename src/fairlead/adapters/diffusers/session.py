"""One call of a steered pipeline: from the calls of its network to guided predictions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.adapters.diffusers import inputs
from fairlead.adapters.diffusers.decoding import Decoder
from fairlead.adapters.diffusers.energies import shown
from fairlead.adapters.diffusers.evaluator import (
    Batching,
    Native,
    PipelineDenoiser,
    PipelineEvaluator,
)
from fairlead.adapters.diffusers.fast import Fast, Formula, Notes, fast
from fairlead.adapters.diffusers.layouts import Layout
from fairlead.adapters.diffusers.levels import Levels, Scale, number
from fairlead.adapters.diffusers.masks import fit
from fairlead.adapters.diffusers.patch import Handler
from fairlead.adapters.diffusers.probe import Reading
from fairlead.guidance.algebra import Guide, Policy, Rule, Term
from fairlead.guidance.branch import COND, NULL, Branch, Predictions
from fairlead.guidance.context import Context, Plan, Run
from fairlead.guidance.guided import GuidedModel, branches, finish, rows_to_evaluate
from fairlead.guidance.masks import fitted
from fairlead.guidance.report import Entry, Report
from fairlead.prediction import Prediction
from fairlead.samplers.pcg import PCG
from fairlead.schedules import EDM, Level


@dataclass(frozen=True)
class Setting:
    """What a session needs to know about the pipeline and the call.

    Attributes:
        pipe: The pipeline.
        guide: The guide.
        layout: Which rows or calls are which branch.
        reading: How the pipeline reads a prediction.
        latents: Shape of the latents, without the batch; empty if unknown.
        recorded: Leaves of the branches that the pipeline calls for one by one.
        states: Leaves of further prompts.
        models: Further networks.
        masks: Masks of pictures.
        batching: See `fl.steer`.
        fixed_rows: See `fl.steer`.
        max_batch: See `fl.steer`.
        seed: Seed of the guide's own draws.
        check: Whether a NaN or infinity raises.
        record: Whether norms are kept.
        sampler: Corrects the scheduler's steps, or `None`.
        energies: Energies by name.
        decode: From clean latents and their grid to what energies of clean samples judge.
    """

    pipe: Any
    guide: Guide
    layout: Layout
    reading: Reading
    latents: tuple[int, ...] = ()
    recorded: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    masks: Mapping[str, Any] = field(default_factory=dict)
    batching: Batching = "auto"
    fixed_rows: bool = False
    max_batch: int | None = None
    seed: int = 0
    check: bool = True
    record: bool = True
    sampler: PCG | None = None
    energies: Mapping[str, Any] = field(default_factory=dict)
    decode: Decoder | None = None


class Session:
    """Guides one call of a pipeline.

    Where the guide is affine in the branches, they are combined as the network returned them;
    elsewhere as clean estimates in float32, with signal and noise read from the scheduler.

    Args:
        setting: The pipeline, the call and the guide.
        report: The log to write.
    """

    def __init__(self, setting: Setting, report: Report) -> None:
        self.setting = setting
        self.guide = setting.guide
        self.layout = setting.layout
        self.report = report
        self.raw = setting.sampler is None and _is_affine(setting.guide)
        self.moving = any(getattr(n, "moves", False) for n in setting.guide.nodes())
        self.levels: Levels | None = None
        self.model: GuidedModel | None = None
        self.evaluator: PipelineEvaluator | None = None
        self.turn = 0
        self.busy = False
        self.stored: Any = None
        self.compared = False
        self.ends: Prediction | None = None
        self.scale: Scale | None = None
        self.correction: Tensor | None = None
        self.time: Any = None
        self.fast: Fast | None = None
        self.notes = Notes(self)
        self._lengths: list[tuple[Entry, Level]] = []
        self._rest: Tensor | None = None
        self._dtype = torch.float32

    def handler(self, name: str, network: nn.Module) -> Handler:
        """Stands in for calls of one of the pipeline's networks."""

        def enter(inner: inputs.Inner) -> inputs.Inner:
            def guided(*args: Any, **kwargs: Any) -> Any:
                if self.busy:  # a further network that is, or holds, the pipeline's own
                    return inner(*args, **kwargs)
                if self.turn:
                    return self._answer(network, args, kwargs)
                if self.fast is not None:
                    return self.fast(inner, args, kwargs)
                return self._guide(network, inner, args, kwargs)

            return guided

        return enter

    def _answer(self, network: nn.Module, args: Any, kwargs: Any) -> Any:
        """The guided prediction again, for the later calls of a step."""
        slots, turn, stored = self.layout.slots, self.turn, self.stored
        self.turn = (turn + 1) % len(slots)
        if not self.compared:
            slot = slots[turn]
            bound = inputs.bind(network, args, kwargs)
            found = inputs.leaves(bound)
            for path, value in self.setting.recorded[slot].items():
                if not inputs.same(found.get(path), value):
                    raise ValueError(
                        f"steer: {type(self.setting.pipe).__name__} gives {path} of its "
                        f"{slot} branch another value than when it was first asked; it cannot be "
                        "steered ahead of its own calls"
                    )
        if self.turn == 0:
            self.stored, self.compared = None, True
        return stored

    def _guide(self, network: nn.Module, inner: inputs.Inner, args: Any, kwargs: Any) -> Any:
        slots = self.layout.slots
        bound = inputs.bind(network, args, kwargs)
        rows = inputs.count(bound)
        parts = len(slots) if self.layout.kind == "rows" else 1
        if rows % parts:
            raise ValueError(
                f"steer: the network was called with {rows} rows, where the layout is "
                f"{self.layout}; say which branch is which: fl.steer(..., layout='rows null cond')"
            )
        native = Native(network, inner, args, kwargs, bound, slots[0], rows // parts)
        self.busy = True
        try:
            guided = self._predict(native)
        finally:
            self.busy = False
        made = self._spread(guided, native)
        if self.layout.kind == "calls" and len(slots) > 1:
            self.stored, self.turn = made, 1
        return made

    def _predict(self, native: Native) -> Tensor:
        """The guided prediction as the network would have returned it, for each sample."""
        self.time = native.bound.get(inputs.name_of(native.bound, inputs.TIME) or "")
        if self.evaluator is None:
            self._start(native)
        assert self.evaluator is not None
        assert self.model is not None
        self.evaluator.begin(native)
        self.evaluator.output = None
        before, scale = self.scale, self._scale()
        self.scale = scale
        x = self._x(self.evaluator.arguments(COND), scale)
        if self.model.ctx is None:
            self.model.check()
        gain = 1.0
        if self.setting.sampler is not None:
            gain = 0.0
            if before is not None:
                x = self._correct(self.setting.sampler, x, before.level, native)
        self.model.begin(scale.level)
        if self.moving:
            x = self._enter(x, native)
        if self.raw:
            made = self._combine_raw(x, scale.level, native)
        else:
            ends = self.ends = self.model(x, scale.level, gain=gain)
            assert self.levels is not None
            sign = self.setting.reading.sign
            made = self.levels.from_x0(ends.renoise, x, scale.level, sign)
            if self._rest is not None:
                made = torch.cat([made, self._rest.to(made)], 1)
        return made if made.dtype == self._dtype else made.to(self._dtype)

    def _correct(self, sampler: PCG, x: Tensor, before: Level, native: Native) -> Tensor:
        """The sample after the Langevin steps that end the step from the level before.

        They need the network at the new level, so they are made when it is next called; the
        scheduler is told of them in its own next step.
        """
        assert self.model is not None
        assert self.evaluator is not None
        assert self.scale is not None
        _refuse_stale(str(sampler), "the sampler", native)
        start = x
        for _ in range(sampler.langevin):
            x = sampler.correct(self.model, x, before, self.scale.level)
            self.evaluator.begin(self.at(x, native))
        self.correction = (x - start) * self.scale.latents
        return x

    def _enter(self, x: Tensor, native: Native) -> Tensor:
        """The sample moved by the terms that act before a step, as the scheduler will be told."""
        assert self.model is not None
        assert self.evaluator is not None
        assert self.scale is not None
        _refuse_stale(str(self.guide), "the term that moves it", native)
        moved = self.model.enter(x, self.scale.level)
        if moved is x:
            return x
        self.evaluator.begin(self.at(moved, native))
        self.evaluator.output = None  # of an evaluation whose graph is done with
        delta = (moved - x) * self.scale.latents
        self.correction = delta if self.correction is None else self.correction + delta
        return moved

    def at(self, x: Tensor, native: Native) -> Native:
        """The pipeline's call at another sample."""
        given = native.bound
        parts = inputs.count(given) // native.batch
        bound = inputs.put(given, self._moved(torch.cat([x] * parts), given))
        return replace(native, args=(), kwargs=bound, bound=bound)

    def _start(self, native: Native) -> None:
        setting = self.setting
        scheduler = setting.pipe.scheduler
        try:
            self.levels = Levels(scheduler)
        except ValueError:
            if self.moving or not (self.raw and self.guide.steady):
                raise
        if not self.raw and setting.reading.sign == 0:
            raise ValueError(
                f"steer: what {type(setting.pipe).__name__} makes of a prediction before its "
                "scheduler sees it was not recognised, so that clean estimates are not known; use "
                "a guide of terms and schedules alone"
            )
        schedule = EDM() if self.levels is None else self.levels.schedule
        self.evaluator = PipelineEvaluator(
            PipelineDenoiser(native.network, schedule),
            self.layout,
            setting.recorded,
            setting.states,
            {name: PipelineDenoiser(m, schedule) for name, m in setting.models.items()},
            self._convert,
            self._moved,
            self.at,
            batching=setting.batching,
            fixed_rows=setting.fixed_rows,
            max_batch=setting.max_batch,
        )
        run = Run(
            setting.seed,
            range(native.batch),
            self._steps(),
            check=setting.check and (self.moving or not self.raw),
            record=setting.record,
            levels=() if self.raw or self.levels is None else self.levels.ahead(self.time),
            energies=shown(self.guide, setting.energies, setting.decode, inputs.grid(native.bound)),
            masks=self._masks(native),
        )
        run.report = self.report
        self.model = GuidedModel(self.guide, self.evaluator, run)

    def _masks(self, native: Native) -> dict[str, Tensor]:
        """Masks of pictures as masks of latents."""
        x = self._latents(inputs.stacked(inputs.sample(native.bound)))[: native.batch].float()
        grid = inputs.grid(native.bound)
        made = {n: fit(n, mask, x, grid) for n, mask in self.setting.masks.items()}
        return fitted(made, x)

    def _steps(self) -> int:
        """Number of network evaluations that lie ahead."""
        scheduler = self.setting.pipe.scheduler
        times = getattr(scheduler, "timesteps", None)
        if times is None:
            return 1
        if self.levels is not None and self.levels.kind != "cumulative":
            return max(1, len(times) - self.levels.index())
        now, values = number(self.time), times.tolist()
        return len(values) - (values.index(now) if now in values else 0)

    def _scale(self) -> Scale:
        if self.levels is None:
            return Scale(Level(math.nan, math.nan, math.nan))
        return self.levels.at(self.time)

    def _x(self, arguments: inputs.Arguments, scale: Scale) -> Tensor:
        """The noisy sample that a network was given, with the noise level of `scale`."""
        x = self._latents(inputs.stacked(inputs.sample(arguments)))
        if x.dtype not in (torch.float32, torch.float64):
            x = x.float()
        return x if scale.factor == 1.0 else x * scale.factor

    def _latents(self, value: Tensor) -> Tensor:
        """The part of a tensor that holds latents, without further channels."""
        shape = self.setting.latents
        if len(shape) == value.ndim - 1 and value.shape[1:] != shape:
            for dim, size in enumerate(shape, 1):
                if value.shape[dim] > size:
                    value = value.narrow(dim, 0, size)
        return value

    def _moved(self, x: Tensor, arguments: inputs.Arguments) -> dict[str, Any]:
        """The sample of a branch that is evaluated elsewhere."""
        assert self.scale is not None
        given = inputs.sample(arguments)
        made = inputs.stacked(given).clone()
        self._latents(made).copy_(x / self.scale.factor)
        return {inputs.name_of(arguments, inputs.SAMPLE) or "": inputs.like(made, given)}

    def _convert(self, value: Tensor, x: Tensor, branch: Branch, ctx: Context) -> Tensor:
        """A network's output at `x` as a prediction of our kind."""
        self._dtype = value.dtype
        if self.raw:
            return value
        kept = self._latents(value)
        if kept.shape != value.shape and branch == ctx.plan.base:
            self._rest = value[:, kept.shape[1] :].detach()
        assert self.levels is not None
        return self.levels.to_x0(kept.to(x.dtype), x, ctx.level, self.setting.reading.sign)

    def _combine_raw(self, x: Tensor, level: Level, native: Native) -> Tensor:
        """The branches as the network returned them, combined."""
        model, run = self.model, self.model.run  # type: ignore[union-attr]
        assert model is not None
        assert self.evaluator is not None
        ctx = model.context(x, level)
        if model.wanted is None or not self.guide.steady:
            ctx.plan = Plan(self.guide.base(ctx))
            self.guide.plan(ctx, (), 1.0, ())
            model.wanted = rows_to_evaluate(ctx)
        self.report.begin(run.step, run.stage, level.t, model.wanted, ctx.batch)
        self._lengths.append((self.report.entries[-1], level))
        values = self.evaluator(model.wanted, ctx)
        known = not (ctx.plan.captures or self.moving)
        formula = Formula.of(self, ctx.plan, model.wanted) if known else None
        if formula is None:
            wide = {b: v.to(x.dtype) for b, v in values.items()}
            made = finish(self.guide, Predictions(ctx.plan.base, wide, ctx.maps), ctx).denoise
            self._dtype = torch.float32 if self.setting.reading.wide else self._dtype
            return made
        if self.guide.steady:
            self.fast = fast(self, formula, native)
        made, norm = formula(values[COND], values[NULL])
        if norm is not None and formula.label is not None:
            self.report.norm(formula.label, norm * formula.size)
        self._dtype = made.dtype
        return made

    def read(self) -> Report:
        """The log, with all that was noted."""
        self.flush()
        return self.report

    def flush(self) -> None:
        """Writes down the steps that were only noted, and lengths in x0."""
        self.notes.write()
        for entry, level in self._lengths:
            if self.levels is not None:
                factor = self.levels.length(level)
                entry.norms = {k: v * factor for k, v in entry.norms.items()}
        self._lengths.clear()

    def level_of(self, time: Any, index: int | None) -> Level:
        """The level of a network call that was made at a time and a place of the scheduler's."""
        if self.levels is None:
            return Level(math.nan, math.nan, math.nan)
        return self.levels.at(time, index).level

    def end(self) -> None:
        """Keeps what the log needs of the scheduler, when a call ends in whichever way."""
        if self.levels is not None:
            self.levels.freeze()

    def close(self) -> None:
        """Ends a call that went through.

        Raises:
            FloatingPointError: A term was NaN or infinite; names the step.
        """
        if not self.setting.check:
            return
        every = [v for entry in self.report.entries for v in entry.norms.values()]
        every += self.notes.norms
        if not every or bool(torch.stack(every).isfinite().all()):
            return
        self.flush()
        for entry in self.report.entries:
            bad = [k for k, v in entry.norms.items() if not math.isfinite(float(v))]
            if bad:
                raise FloatingPointError(
                    f"steer: {bad[0]} is NaN or infinite at step {entry.step}: one of the branches "
                    f"{', '.join(b.name for b in entry.wanted)} is; pass check=False to go on all "
                    "the same"
                )

    def _spread(self, guided: Tensor, native: Native) -> Any:
        """The guided prediction for every branch that the pipeline expects."""
        assert self.evaluator is not None
        output = self.evaluator.output
        parts = len(self.layout.slots) if self.layout.kind == "rows" else 1
        value = torch.cat([guided] * parts) if parts > 1 else guided
        if output is None:
            return (inputs.like(value, inputs.sample(native.bound)),)
        return inputs.replaced(output, inputs.like(value, inputs.prediction(output)))


def _refuse_stale(owner: str, what: str, native: Native) -> None:
    """Refuses a call with what another network made of the sample, which is to be moved.

    Raises:
        ValueError: There is such an argument.
    """
    stale = [n for n in sorted(inputs.STEPWISE) if native.bound.get(n) is not None]
    if stale:
        raise ValueError(
            f"steer: {owner} moves the sample between two calls of the network, and another "
            f"network made {stale[0]} from the sample before; leave out {what}, or the ControlNet"
        )


def _is_affine(guide: Guide) -> bool:
    """Whether it weighs branches and does nothing else, so that any space will do."""
    for node in guide.nodes():
        if isinstance(node, (Rule, Policy)):
            return False
        if isinstance(node, Term) and (node.claims_renoise or not node.affine):
            return False
    return not any(b.point or b.outputs for b in branches(guide))
