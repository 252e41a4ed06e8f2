"""From branches to as few network calls as possible."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairlead.condition import Condition, concatenate
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.guidance.branch import Branch, Capture, Maps, Predictions
from fairlead.guidance.context import Context, Plan, Run
from fairlead.guidance.hooks import Span, perturbed
from fairlead.guidance.replacing import shared
from fairlead.parameters import nearest
from fairlead.schedules import Level

Batching = Literal["batched", "sequential", "parallel"]


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
        checkpoint: Whether a prediction that is differentiated is computed again, call by call,
            in the backward pass, so that the graph of one call is held at a time.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        states: Mapping[str, Condition],
        models: Mapping[str, Denoiser] | None = None,
        *,
        batching: Batching = "batched",
        max_batch: int | None = None,
        checkpoint: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.states = dict(states)
        self.models = {**denoiser.models, **(models or {})}
        self.batching = batching
        self.max_batch = max_batch
        self.checkpoint = checkpoint
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
        if stack is not None and wanted is stack.wanted and not ctx.plan.through:
            return self._again(stack, ctx)
        done: dict[Branch, Tensor] = {}
        ctx.maps = {}
        ctx.given = self.given
        ctx.done = Predictions(ctx.plan.base, done, ctx.maps)
        left = dict(wanted)
        while left:
            ready = {b: r for b, r in left.items() if all(n in done for n in b.needs)}
            if not ready:
                missing = next(n.name for b in left for n in b.needs if n not in done)
                raise ValueError(f"evaluator: a branch needs {missing!r}, which is not evaluated")
            self._predict_all(ready, done, ctx)
            left = {b: r for b, r in left.items() if b not in ready}
        self._last_stack = self._plain_stack(wanted, ctx)
        return done

    def read(
        self, branch: Branch, x: Tensor, captures: Sequence[Capture], ctx: Context
    ) -> Predictions:
        """A branch at another `x`, with what captures keep of its attention.

        The graph is kept where `x` requires a gradient: prediction and maps can then be
        differentiated in it. The evaluation counts, and nothing of the context changes.

        Args:
            branch: What is predicted; it may not need other branches.
            x: Where, `(B, ...)`.
            captures: What is kept; see `Predictions.maps`.
            ctx: The evaluation.

        Raises:
            ValueError: The branch needs others.
        """
        if branch.needs:
            raise ValueError(
                f"the branch {branch.name!r} cannot be read alone: it needs "
                f"{', '.join(b.name for b in branch.needs)}"
            )
        kept = ctx.x, ctx.plan, ctx.maps, ctx.done
        done: dict[Branch, Tensor] = {}
        maps: Maps = {}
        ctx.x, ctx.plan, ctx.maps, ctx.done = x, Plan(branch), maps, None
        ctx.plan.captures = {branch: list(captures)}
        ctx.given = self.given
        try:
            with torch.set_grad_enabled(x.requires_grad):
                self._predict(
                    self.model(branch.model), {branch: None}, done, ctx, graph=x.requires_grad
                )
        finally:
            ctx.x, ctx.plan, ctx.maps, ctx.done = kept
        return Predictions(branch, done, maps)

    def _predict_all(
        self,
        branches: dict[Branch, Tensor | None],
        done: dict[Branch, Tensor],
        ctx: Context,
    ) -> None:
        """Predicts branches that need no others, into `done`."""
        by_model: dict[str, dict[Branch, Tensor | None]] = {}
        for branch, rows in branches.items():
            if branch in ctx.plan.through:
                self._differentiable(branch, done, ctx)
            else:
                by_model.setdefault(branch.model, {})[branch] = rows
        for name, chosen in by_model.items():
            self._predict(self.model(name), chosen, done, ctx)

    def _differentiable(self, branch: Branch, done: dict[Branch, Tensor], ctx: Context) -> None:
        """Predicts a branch and keeps the graph from `x` to it in `ctx.graph`."""
        x = ctx.x
        assert x is not None
        leaf = x.detach().to(working_dtype(x)).requires_grad_()
        ctx.x = leaf
        try:
            with torch.enable_grad():
                self._predict(self.model(branch.model), {branch: None}, done, ctx, graph=True)
        finally:
            ctx.x = x
        ctx.graph[branch] = (leaf, done[branch])
        done[branch] = done[branch].detach()

    def _plain_stack(self, wanted: dict[Branch, Tensor | None], ctx: Context) -> _Stack | None:
        """The calls for these branches, if they will be the same whenever they are asked."""
        if (
            any(
                rows is not None
                or b.transforms
                or b.perturbations
                or b.needs
                or b.point
                or b.outputs
                for b, rows in wanted.items()
            )
            or ctx.plan.captures
            or ctx.plan.through  # a branch that is differentiated has a call of its own
        ):
            return None
        if isinstance(ctx.level.t, Tensor):  # a level a sample, to be stacked like the samples
            return None
        models = {b.model for b in wanted}
        conditions = [self.check(b, ctx.run) for b in wanted]
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
        with _trunk(model, len(branches), ctx):
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

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions, without those that only go with another one."""
        return frozenset(self.states["cond"]) - self.denoiser.companions

    def check(self, branch: Branch, run: Run | None = None) -> Condition:
        """The condition of a branch before its transforms; noise in it is fixed for the run.

        Raises:
            ValueError: Its state was not given.
        """
        key = (branch.model, branch.state, branch.nulled, branch.taken)
        if key not in self._conditions:
            self._conditions[key] = self._state(branch, run or Run())
        return self._conditions[key]

    def condition(self, branch: Branch, ctx: Context) -> Condition:
        """The condition of a branch."""
        condition = self.check(branch, ctx.run)
        for transform in branch.transforms:
            condition = transform(condition, self.model(branch.model), ctx)
        return condition

    def _state(self, branch: Branch, run: Run) -> Condition:
        denoiser = self.model(branch.model)
        whole = branch.state == "null"
        condition = self._given("cond" if whole else branch.state)
        for name, state in branch.taken:
            other = self._given(state)
            if name not in condition or name not in other:
                have = condition if name not in condition else other
                raise ValueError(
                    f"the guide takes the condition {name!r} from the state {state!r}; "
                    f"{nearest(name, have)}"
                )
            condition = condition.replace(**{name: other[name]})
        if not (whole or branch.nulled):
            return condition
        if not condition:
            raise ValueError(
                "the guide asks for a null condition, but the model was given no condition: "
                "pass fl.sample(condition={...}), or use a guide that needs none (tsg, pag, "
                "autoguidance)"
            )
        nulled = None if whole else branch.nulled
        self._warn_untrained(
            "null" if whole else denoiser.state(branch.nulled, condition), denoiser
        )
        return denoiser.null_condition(condition, nulled, run.fixed)

    def given(self, state: str) -> Condition:
        """The condition of a state of the sampled model, `null` included.

        Raises:
            ValueError: It was not given.
        """
        return self.check(Branch(state, state=state))

    def _given(self, state: str) -> Condition:
        if state not in self.states:
            raise ValueError(
                f"the guide asks for the condition state {state!r}: pass "
                f"fl.sample(states={{{state!r}: {{...}}}}); "
                f"{nearest(state, self.states)}"
            )
        return self.states[state]

    def log_density(self, branch: Branch, ctx: Context) -> Tensor:
        """The log density of `ctx.x` under a branch, `(B,)`, up to a constant.

        Raises:
            ValueError: The branch is no distribution of its own, or its model knows no density.
        """
        assert ctx.x is not None
        if branch.perturbations or branch.point is not None:
            raise ValueError(f"the branch {branch.name!r} has no density: it is perturbed")
        denoiser = self.model(branch.model)
        return denoiser.log_density(ctx.x, ctx.level, self.condition(branch, ctx))

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
        *,
        graph: bool = False,
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
            outputs: list[tuple[_Request, Tensor]] = []
            for alike in _alike(denoiser, requests):
                found = self._call(denoiser, alike, ctx, graph=graph)
                outputs += zip(alike, found, strict=True)
            for request, predicted in outputs:
                out = predicted
                point = request.branch.point
                if point is not None and point.keeps_noise:
                    out = out + _moved(ctx, request)
                for change in request.branch.outputs:
                    out = change(out, ctx)
                if request.rows is not None:
                    base = done.get(ctx.plan.base)
                    whole = out.new_zeros(ctx.batch, *out.shape[1:]) if base is None else base
                    out = whole.index_copy(0, request.rows, out)
                done[request.branch] = out

    def _request(
        self, branch: Branch, rows: Tensor | None, done: dict[Branch, Tensor], ctx: Context
    ) -> _Request:
        x = ctx.x
        assert x is not None
        if branch.point is not None:
            x = branch.point(x, Predictions(ctx.plan.base, done, ctx.maps), ctx)
        condition = self.condition(branch, ctx)
        if rows is not None:
            x, condition = x[rows], condition.rows(rows)
        return _Request(branch, x, condition, rows)

    def _call(
        self, denoiser: Denoiser, requests: list[_Request], ctx: Context, *, graph: bool = False
    ) -> list[Tensor]:
        if len(requests) == 1:
            x, condition = requests[0].x, requests[0].condition
        else:
            x = torch.cat([r.x for r in requests])
            condition = self._stack(denoiser, requests)
        sizes = [r.x.shape[0] for r in requests]
        spans: list[Span] = []
        start = 0
        for request, size in zip(requests, sizes, strict=True):
            captures = ctx.plan.captures.get(request.branch, ())
            if request.branch.perturbations or captures:
                samples = range(size) if request.rows is None else request.rows.tolist()
                spans.append(Span(start, samples, request.branch, captures))
            start += size
        again = graph and self.checkpoint
        limit = self.max_batch or start
        if start <= limit and not spans:
            ctx.run.report.calls += 1
            same = all(r.x is ctx.x for r in requests)
            predict: Callable[..., Tensor] = denoiser.predict
            if again:
                predict = partial(checkpoint, predict, use_reentrant=False)
            with _trunk(denoiser, len(requests) if same else 1, ctx):
                output = predict(x, _rows_of(ctx.level, requests, 0, start), condition)
            return [output] if len(requests) == 1 else list(torch.split(output, sizes))
        parts = []
        for first in range(0, start, limit):
            last = min(first + limit, start)
            local = [s for span in spans if (s := span.within(first, last))]
            whole = first == 0 and last == start
            chunk = condition if whole else condition.rows(slice(first, last))
            level = _rows_of(ctx.level, requests, first, last)
            maps: Maps = {}
            call = partial(_hooked, denoiser, local, ctx)
            # what perturbations read of the context may have changed when it is repeated
            if again and not any(s.branch.perturbations for s in local):
                call = partial(checkpoint, call, use_reentrant=False)
            parts.append(call(x if whole else x[first:last], level, chunk, maps))
            extend(ctx.maps, maps)
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


def _hooked(
    denoiser: Denoiser,
    spans: list[Span],
    ctx: Context,
    x: Tensor,
    level: Level,
    condition: Condition,
    maps: Maps,
) -> Tensor:
    """A network call under hooks; the first time, what captures keep is added to `maps`."""
    into: Maps = {}
    with perturbed(denoiser, spans, ctx, len(x), into):
        out = denoiser.predict(x, level, condition)
    if not maps:
        maps.update(into)
    return out


@contextmanager
def _trunk(denoiser: Denoiser, copies: int, ctx: Context) -> Iterator[None]:
    """Inside, what does not depend on the condition runs once for several branches at `ctx.x`."""
    if copies == 1 or not denoiser.trunk:
        yield
        return
    ctx.run.report.shared += copies - 1
    with shared(denoiser.trunk, copies * ctx.batch, copies):
        yield


def _alike(denoiser: Denoiser, requests: list[_Request]) -> list[list[_Request]]:
    """Requests grouped by the shapes of their conditions: a longer text has a call of its own."""
    if len(requests) == 1 or not any(r.branch.transforms for r in requests):
        return [requests]
    if len({tuple(v.dtype for v in r.condition.values()) for r in requests}) > 1:
        for request in requests:
            request.condition = denoiser.embed(request.condition)
    groups: dict[Any, list[_Request]] = {}
    for request in requests:
        shapes = tuple(v.shape[1:] for v in request.condition.values())
        groups.setdefault(shapes, []).append(request)
    return list(groups.values())


def _moved(ctx: Context, request: _Request) -> Tensor:
    """What a clean estimate gains where the same noise is taken off `x` instead."""
    assert ctx.x is not None
    x, alpha = ctx.x, ctx.alpha
    if request.rows is not None:
        x = x[request.rows]
        alpha = alpha[request.rows] if isinstance(alpha, Tensor) else alpha
    away = x - request.x
    if isinstance(alpha, Tensor):
        return away / alpha.clamp(min=torch.finfo(away.dtype).tiny)
    return away / alpha if alpha else away


def extend(maps: Maps, more: Maps) -> None:
    """Adds the rows of a further chunk to what was kept."""
    for key, layers in more.items():
        kept = maps.setdefault(key, {})
        for name, calls in layers.items():
            before = kept.get(name)
            pairs = zip(before, calls, strict=True) if before else ()
            kept[name] = [torch.cat(pair) for pair in pairs] if before else calls


def _rows_of(level: Level, requests: list[_Request], first: int, last: int) -> Level:
    """The level of a span of the stacked rows, where it differs between samples."""
    if not isinstance(level.t, Tensor):
        return level
    if len(requests) == 1 and requests[0].rows is None and last - first == len(level.t):
        return level
    index = torch.cat(
        [torch.arange(len(level.t)) if r.rows is None else r.rows.cpu() for r in requests]
    )[first:last]
    return Level(level.t[index], level.alpha[index], level.sigma[index])
