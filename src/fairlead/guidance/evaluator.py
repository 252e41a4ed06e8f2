"""From branches to as few network calls as possible, and from a guide to a guided model."""

import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fairlead.condition import Condition, concatenate
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide, Rule, Term
from fairlead.guidance.branch import COND, Branch, Perturbation, Predictions
from fairlead.guidance.context import Context, Plan, Run, Weight
from fairlead.parameters import nearest
from fairlead.samplers.base import Prediction
from fairlead.schedules import Level

Batching = Literal["batched", "sequential"]


@dataclass
class _Request:
    """Rows of one branch that a network call has to predict."""

    branch: Branch
    x: Tensor
    condition: Condition
    rows: Tensor | None


class _Stack(NamedTuple):
    """The network calls for branches that are asked again and again."""

    wanted: dict[Branch, Tensor | None]
    branches: tuple[Branch, ...]
    calls: list[tuple[Denoiser, Condition]]


class Evaluator:
    """Predicts branches: those that share a model go into one batch.

    Args:
        denoiser: The sampled model.
        states: Conditions by state name; `cond` is what the user asked for.
        models: Further models by name.
        batching: `batched`, or `sequential` for one call a branch.
        max_batch: Most rows in one network call.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        states: Mapping[str, Condition],
        models: Mapping[str, Denoiser] | None = None,
        *,
        batching: Batching = "batched",
        max_batch: int | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.states = dict(states)
        self.models = {**denoiser.models, **(models or {})}
        self.batching = batching
        self.max_batch = max_batch
        self._conditions: dict[Any, Condition] = {}
        self._stacked: dict[tuple[Branch, ...], Condition] = {}
        self._warned: set[str] = set()
        self._last_stack: _Stack | None = None

    def __call__(self, wanted: dict[Branch, Tensor | None], ctx: Context) -> dict[Branch, Tensor]:
        """The clean estimates of the wanted branches.

        Args:
            wanted: Rows to predict for each branch, `None` for all.
            ctx: The evaluation.

        Returns:
            `(B, ...)` for each branch; rows that were not asked for hold the base's.
        """
        stack = self._last_stack
        if stack is not None and wanted is stack.wanted:
            return self._again(stack, ctx)
        done: dict[Branch, Tensor] = {}
        left = dict(wanted)
        while left:
            ready = {b: r for b, r in left.items() if all(n in done for n in b.needs)}
            if not ready:
                missing = next(n.name for b in left for n in b.needs if n not in done)
                raise ValueError(f"evaluator: a branch needs {missing!r}, which is not evaluated")
            by_model: dict[str, dict[Branch, Tensor | None]] = {}
            for branch, rows in ready.items():
                by_model.setdefault(branch.model, {})[branch] = rows
            for name, branches in by_model.items():
                self._predict(self.model(name), branches, done, ctx)
            left = {b: r for b, r in left.items() if b not in ready}
        self._last_stack = self._plain_stack(wanted, ctx)
        return done

    def _plain_stack(self, wanted: dict[Branch, Tensor | None], ctx: Context) -> _Stack | None:
        """The calls for these branches, if they will be the same whenever they are asked."""
        if any(
            rows is not None or b.transforms or b.perturbations or b.needs or b.point
            for b, rows in wanted.items()
        ):
            return None
        models = {b.model for b in wanted}
        conditions = [self.check(b) for b in wanted]
        if self.batching == "sequential" or len(wanted) == 1:
            rows = ctx.batch
            calls = [(self.model(b.model), c) for b, c in zip(wanted, conditions, strict=True)]
        elif len(models) == 1:
            rows = ctx.batch * len(wanted)
            calls = [(self.model(models.pop()), self._stacked[tuple(wanted)])]
        else:
            return None
        if self.max_batch is not None and rows > self.max_batch:
            return None
        return _Stack(wanted, tuple(wanted), calls)

    def _again(self, stack: _Stack, ctx: Context) -> dict[Branch, Tensor]:
        """As `__call__`, for branches whose calls are known."""
        x, level, report = ctx.x, ctx.level, ctx.run.report
        assert x is not None
        branches, calls = stack.branches, stack.calls
        report.nfe = report.nfe + len(branches)
        report.calls += len(calls)
        if len(calls) == len(branches):
            outputs = [model.predict(x, level, condition) for model, condition in calls]
            return dict(zip(branches, outputs, strict=True))
        model, condition = calls[0]
        output = model.predict(torch.cat([x] * len(branches)), level, condition)
        return dict(zip(branches, output.chunk(len(branches)), strict=True))

    def model(self, name: str) -> Denoiser:
        """The sampled model, or another by name.

        Raises:
            ValueError: There is none of that name.
        """
        if not name:
            return self.denoiser
        if name not in self.models:
            raise ValueError(
                f"the guide asks for a model {name!r}: pass fl.sample(models={{{name!r}: "
                f"denoiser}}); {nearest(name, self.models)}"
            )
        return self.models[name]

    def check(self, branch: Branch) -> Condition:
        """The condition of a branch before its transforms.

        Raises:
            ValueError: Its state was not given.
        """
        key = (branch.model, branch.state, branch.nulled)
        if key not in self._conditions:
            self._conditions[key] = self._state(branch)
        return self._conditions[key]

    def condition(self, branch: Branch, ctx: Context) -> Condition:
        """The condition of a branch."""
        condition = self.check(branch)
        for transform in branch.transforms:
            condition = transform(condition, self.model(branch.model), ctx)
        return condition

    def _state(self, branch: Branch) -> Condition:
        denoiser = self.model(branch.model)
        if branch.state == "null" or branch.nulled:
            self._warn_untrained("null", denoiser)
            cond = self.states["cond"]
            if not cond:
                raise ValueError(
                    "the guide asks for a null condition, but the model was given no condition: "
                    "pass fl.sample(condition={...}), or use a guide that needs none (tsg, pag, "
                    "autoguidance)"
                )
            return denoiser.null_condition(cond, branch.nulled or None)
        if branch.state not in self.states:
            raise ValueError(
                f"the guide asks for the condition state {branch.state!r}: pass "
                f"fl.sample(states={{{branch.state!r}: {{...}}}}); "
                f"{nearest(branch.state, self.states)}"
            )
        return self.states[branch.state]

    def _warn_untrained(self, state: str, denoiser: Denoiser) -> None:
        trained = denoiser.trained
        if trained is not None and state not in trained and state not in self._warned:
            self._warned.add(state)
            warnings.warn(
                f"the model was not trained on the condition state {state!r} (trained: "
                f"{', '.join(sorted(trained))}); icg, tsg, pag and autoguidance do without it",
                stacklevel=2,
            )

    def _predict(
        self,
        denoiser: Denoiser,
        branches: dict[Branch, Tensor | None],
        done: dict[Branch, Tensor],
        ctx: Context,
    ) -> None:
        assert ctx.x is not None
        if self.batching == "sequential":
            groups = [{b: r} for b, r in branches.items()]
        else:
            groups = [branches]
        for group in groups:
            requests = [self._request(b, rows, done, ctx) for b, rows in group.items()]
            for request in requests:
                ctx.run.report.count(ctx.batch, request.rows)
            outputs = self._call(denoiser, requests, ctx)
            for request, out in zip(requests, outputs, strict=True):
                if request.rows is not None:
                    base = done.get(ctx.plan.base)
                    whole = torch.zeros_like(ctx.x, dtype=out.dtype) if base is None else base
                    out = whole.index_copy(0, request.rows, out)
                done[request.branch] = out

    def _request(
        self, branch: Branch, rows: Tensor | None, done: dict[Branch, Tensor], ctx: Context
    ) -> _Request:
        x = ctx.x
        assert x is not None
        if branch.point is not None:
            x = branch.point(x, Predictions(ctx.plan.base, done), ctx)
        condition = self.condition(branch, ctx)
        if rows is not None:
            x, condition = x[rows], condition.rows(rows)
        return _Request(branch, x, condition, rows)

    def _call(self, denoiser: Denoiser, requests: list[_Request], ctx: Context) -> list[Tensor]:
        if len(requests) == 1:
            x, condition = requests[0].x, requests[0].condition
        else:
            x = torch.cat([r.x for r in requests])
            condition = self._stack(denoiser, requests)
        sizes = [r.x.shape[0] for r in requests]
        spans: list[_Span] = []
        start = 0
        for request, size in zip(requests, sizes, strict=True):
            if request.branch.perturbations:
                samples = range(size) if request.rows is None else request.rows.tolist()
                spans += [_Span(start, samples, p) for p in request.branch.perturbations]
            start += size
        limit = self.max_batch or start
        if start <= limit and not spans:
            ctx.run.report.calls += 1
            output = denoiser.predict(x, ctx.level, condition)
            return [output] if len(requests) == 1 else list(torch.split(output, sizes))
        parts = []
        for first in range(0, start, limit):
            last = min(first + limit, start)
            local = [s for span in spans if (s := span.within(first, last))]
            whole = first == 0 and last == start
            chunk = condition if whole else condition.rows(slice(first, last))
            level = ctx.level if whole else _rows_of(ctx.level, requests, first, last)
            with perturbed(denoiser, local, ctx):
                parts.append(denoiser.predict(x if whole else x[first:last], level, chunk))
            ctx.run.report.calls += 1
        output = parts[0] if len(parts) == 1 else torch.cat(parts)
        return [output] if len(requests) == 1 else list(torch.split(output, sizes))

    def _stack(self, denoiser: Denoiser, requests: list[_Request]) -> Condition:
        fixed = all(not r.branch.transforms and r.rows is None for r in requests)
        key = tuple(r.branch for r in requests)
        if fixed and key in self._stacked:
            return self._stacked[key]
        conditions = [r.condition for r in requests]
        if len({tuple(v.dtype for v in c.values()) for c in conditions}) > 1:
            conditions = [denoiser.embed(c) for c in conditions]
        stacked = concatenate(conditions)
        if fixed:
            self._stacked[key] = stacked
        return stacked


def _rows_of(level: Level, requests: list[_Request], first: int, last: int) -> Level:
    """The level of a span of the stacked rows, where it differs between samples."""
    if not isinstance(level.t, Tensor):
        return level
    index = torch.cat(
        [torch.arange(len(level.t)) if r.rows is None else r.rows.cpu() for r in requests]
    )[first:last]
    return Level(level.t[index], level.alpha[index], level.sigma[index])


@dataclass(frozen=True)
class _Span:
    """Consecutive rows of a network call that belong to one perturbed branch."""

    start: int
    samples: Sequence[int]
    perturbation: Perturbation

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)

    def within(self, first: int, last: int) -> "_Span | None":
        """The part that lies in a chunk of the call, counted from the chunk's start."""
        a, b = max(self.start, first), min(self.stop, last)
        if a >= b:
            return None
        samples = self.samples[a - self.start : b - self.start]
        return _Span(a - first, samples, self.perturbation)


@contextmanager
def perturbed(denoiser: Denoiser, spans: list[_Span], ctx: Context) -> Iterator[None]:
    """Lets each perturbation act on its rows of the batch, in this thread, inside the block."""
    if not spans:
        yield
        return
    thread = threading.get_ident()
    handles = []

    def install(module: nn.Module, span: _Span) -> None:
        first, last = span.start, span.stop

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if threading.get_ident() != thread:
                return None
            part = tuple(i[first:last] if isinstance(i, Tensor) else i for i in inputs)
            changed = span.perturbation(part, output[first:last], span.samples, ctx)
            if first == 0 and last == len(output):
                return changed.to(output.dtype)
            return torch.cat([output[:first], changed.to(output.dtype), output[last:]])

        handles.append(module.register_forward_hook(hook))

    try:
        for span in spans:
            for module in span.perturbation.modules(denoiser):
                install(module, span)
        yield
    finally:
        for handle in handles:
            handle.remove()


class GuidedModel:
    """A denoiser under a guide, as samplers see it (`fairlead.samplers.base.Model`).

    Args:
        guide: The guide.
        evaluator: Predicts the branches.
        run: Memory of this run.
    """

    def __init__(self, guide: Guide, evaluator: Evaluator, run: Run) -> None:
        self.guide = guide
        self.evaluator = evaluator
        self.run = run
        self.schedule = evaluator.denoiser.schedule
        self.memory: dict[str, Any] = run.memory
        self.start: Level | None = None
        self.last: Prediction | None = None
        self.ctx: Context | None = None
        self.wanted: dict[Branch, Tensor | None] | None = None
        self._drawn = 0

    @property
    def step(self) -> int:
        return self.run.step

    @property
    def steps(self) -> int:
        return self.run.steps

    def check(self) -> None:
        """Asks for every branch that the guide can want, so that what is missing is named now.

        Raises:
            ValueError: A condition state, a null, a model or a layer is missing.
        """
        for branch in branches(self.guide):
            denoiser = self.evaluator.model(branch.model)
            self.evaluator.check(branch)
            for perturbation in branch.perturbations:
                perturbation.modules(denoiser)

    def begin(self, level: Level) -> None:
        """Begins the next step, at a level."""
        self.run.advance()
        self.start = level
        self._drawn = 0

    def noise(self, x: Tensor) -> Tensor:
        """Standard normal noise like `x`, fixed by seed, sample, step and draw."""
        self._drawn += 1
        return self.run.normal(x, "sampler", self._drawn)

    def __call__(self, x: Tensor, level: Level, *, gain: float = 1.0) -> Prediction:
        """Guided prediction at `x`; `gain` multiplies every weight, 0 is conditional."""
        run, ctx = self.run, self.ctx
        if ctx is None or ctx.batch != x.shape[0]:
            ctx = self.ctx = Context(x, level, run, self.evaluator.denoiser)
            self.wanted = None
        ctx.move(x, level, self.start or level)
        if self.wanted is None or gain != 1.0 or not self.guide.steady:
            ctx.plan = Plan(self.guide.base(ctx))
            self.guide.plan(ctx, (), gain, ())
            wanted = rows_to_evaluate(self.guide, ctx)
            self.wanted = wanted if gain == 1.0 else None
        else:
            wanted = self.wanted
        run.report.begin(run.step, run.stage, level.t, wanted, ctx.batch)
        if ctx.plan.policies:
            predictions = self._under_policies(dict(wanted), ctx)
        else:
            predictions = Predictions(ctx.plan.base, self.evaluator(wanted, ctx))
        self.last = finish(self.guide, predictions, ctx)
        run.stage += 1
        return self.last

    def _under_policies(self, wanted: dict[Branch, Tensor | None], ctx: Context) -> Predictions:
        skipped = [
            (policy, place, branch)
            for policy, place in ctx.plan.policies
            for branch in _asked(policy, place, wanted, ctx)
        ]
        for _, _, branch in skipped:
            wanted.pop(branch, None)
        values = self.evaluator(wanted, ctx)
        predictions = Predictions(ctx.plan.base, values)
        for policy, place, branch in skipped:
            ctx.place = place
            values[branch], provenance = policy.fill(branch, predictions, ctx)
            self.run.report.provided(branch.name, provenance)
        return observed(predictions, ctx)


def observed(predictions: Predictions, ctx: Context) -> Predictions:
    """The predictions, once every policy has seen them."""
    for policy, place in ctx.plan.policies:
        ctx.place = place
        policy.observe(predictions, ctx)
    return predictions


def branches(guide: Guide) -> list[Branch]:
    """Every branch that a guide can ask for, under no schedule."""
    found = {COND: None}
    for node in guide.nodes():
        if isinstance(node, Term):
            found |= {node.positive: None}
            if node.strength != 0.0 or node.claims_renoise:
                found |= {node.negative: None}
        elif isinstance(node, Rule):
            found |= dict.fromkeys(node.needs)
    return list(found)


def _asked(policy: Any, place: Any, wanted: dict[Branch, Any], ctx: Context) -> list[Branch]:
    ctx.place = place
    asked = [b for b in policy.skip(list(wanted), ctx) if b in wanted]
    if ctx.plan.base in asked:
        raise ValueError(f"{policy}: a policy may not skip the base branch {ctx.plan.base.name!r}")
    return asked


def rows_to_evaluate(guide: Guide, ctx: Context) -> dict[Branch, Tensor | None]:
    """The branches to evaluate, each with its rows: `None` for all.

    A branch whose coefficients cancel is left out, also for single samples, unless a rule
    reads it or another branch needs it.
    """
    base = ctx.plan.base
    needed: dict[Branch, Tensor | None] = {}
    # a rule sees single terms, so under rules only what no term weighs is left out
    active = ctx.plan.coefficients if guide.linear else _magnitudes(ctx.plan)
    cancels = guide.linear and _equals(active.get(base, 0.0), -1.0)
    if not cancels or base in ctx.plan.read:
        needed[base] = None
    for branch, coefficient in active.items():
        if branch == base:
            continue
        read = branch in ctx.plan.read
        if not read and _equals(coefficient, 0.0):
            continue
        rows = None
        if not read and isinstance(coefficient, Tensor) and coefficient.numel() == ctx.batch:
            on = coefficient.flatten() != 0
            rows = None if bool(on.all()) else on.nonzero().flatten()
        needed[branch] = rows
    for branch in list(needed):
        _enter_needs(branch, needed)
    return needed


def _enter_needs(branch: Branch, needed: dict[Branch, Tensor | None]) -> None:
    for need in branch.needs:
        needed[need] = None
        _enter_needs(need, needed)


def _magnitudes(plan: Plan) -> dict[Branch, Weight]:
    """The sum of the absolute weights of the terms that a wanted branch is part of."""
    total: dict[Branch, Weight] = dict.fromkeys(plan.coefficients, 0.0)
    for weight, positive, negative in plan.terms.values():
        for branch in (positive, negative):
            size = weight.abs() if isinstance(weight, Tensor) else abs(weight)
            total[branch] = total[branch] + size
    return total


def _equals(weight: float | Tensor, value: float) -> bool:
    return not isinstance(weight, Tensor) and weight == value


def finish(guide: Guide, predictions: Predictions, ctx: Context) -> Prediction:
    """The guided prediction from the branches: both ends.

    Raises:
        FloatingPointError: A prediction is NaN or infinite; names the branch and the step.
    """
    values = predictions.values_by_branch
    base = predictions.base_branch
    if base not in values or not all(
        n in values for _, _, n in ctx.plan.terms.values()
    ):  # linear, and a branch cancels
        own = {base: 1.0 + ctx.plan.coefficients.get(base, 0.0)}
        coefficients = {**ctx.plan.coefficients, **own}
        denoise = sum_of([(c, values[b]) for b, c in coefficients.items() if b in values])
    else:
        update, _ = guide.update(predictions, ctx, ())
        denoise = predictions.base if update is None else predictions.base + update
    renoise = guide.renoise(predictions, ctx, denoise) if ctx.plan.renoise else None
    if ctx.run.check:
        # the norms of the terms, where they are kept, are infected by every branch in them
        seen = ctx.run.report.total_norm() if guide.linear else None
        total = denoise.sum() if seen is None else seen
        if renoise is not None:
            total = total + renoise.sum()
        if not math.isfinite(total.item()):
            _blame(predictions, denoise, ctx)
    return Prediction(denoise, denoise if renoise is None else renoise)


def sum_of(parts: list[tuple[float | Tensor, Tensor]]) -> Tensor:
    """A weighted sum; a weight of exactly 1 copies nothing."""
    total: Tensor | None = None
    for weight, value in parts:
        scaled = value if _equals(weight, 1.0) else weight * value
        total = scaled if total is None else total + scaled
    assert total is not None
    return total


def _blame(predictions: Predictions, denoise: Tensor, ctx: Context) -> None:
    at = f"at step {ctx.run.step} (stage {ctx.run.stage})"
    for branch, value in predictions.values_by_branch.items():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(
                f"the prediction of branch {branch.name!r} is NaN or infinite {at}; "
                "pass check=False to go on all the same"
            )
    if not bool(torch.isfinite(denoise).all()):
        raise FloatingPointError(
            f"the guided prediction is NaN or infinite {at}, though every branch "
            f"({', '.join(predictions.names)}) is finite; pass check=False to go on all the same"
        )
