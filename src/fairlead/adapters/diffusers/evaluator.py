"""Branches as calls of a pipeline's own network."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairlead.adapters.diffusers import caches, inputs
from fairlead.adapters.diffusers.layouts import NULLED, Layout
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.branch import Branch, Capture, Predictions
from fairlead.guidance.context import Context, Run
from fairlead.guidance.evaluator import Evaluator, extend
from fairlead.guidance.hooks import Span, perturbed
from fairlead.parameters import nearest
from fairlead.schedules import NoiseSchedule

Batching = Literal["auto", "batched", "sequential"]

TIME_EMBEDDINGS = (
    "time_embedding",
    "time_text_embed.timestep_embedder",
    "time_caption_embed.timestep_embedder",
    "condition_embedder.time_embedder",
    "adaln_single.emb.timestep_embedder",
    "time_embed.emb.timestep_embedder",
    "t_embedder",
    "timestep_proj",
)
"""Usual names of the module that embeds time."""

NO_CONDITION = ("guidance", "time_ids", "resolution", "aspect_ratio", "mask")
"""Parts of names of floating-point inputs that are no condition."""


class PipelineDenoiser(Denoiser):
    """A network of a pipeline as terms and perturbations see it: modules, layers, null.

    Args:
        network: The network.
        schedule: The schedule it was trained under.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__(network, schedule)
        self.time_embedding = self._time_embedding()

    @property
    def own(self) -> nn.Module:
        """The network without the wrapper of `torch.compile`."""
        assert isinstance(self.network, nn.Module)
        return inputs.original(self.network)

    def _time_embedding(self) -> str | None:
        known = {name for name, _ in self.own.named_modules()}
        return next((name for name in TIME_EMBEDDINGS if name in known), None)

    def module(self, name: str) -> nn.Module:
        wrapped, self.network = self.network, self.own
        try:
            return super().module(name)
        finally:
            self.network = wrapped


@dataclass
class Native:
    """The call of its network that a pipeline just made.

    Attributes:
        network: The network.
        inner: Calls it as the pipeline would have.
        args: As given.
        kwargs: As given.
        bound: All arguments by name.
        slot: The branch of this call, where a pipeline makes one call a branch.
        batch: Number of samples.
    """

    network: nn.Module
    inner: inputs.Inner
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bound: inputs.Arguments
    slot: str
    batch: int


@dataclass
class _Request:
    """Rows that a call has to predict: of one branch, or of all that a pipeline lays in one."""

    branches: tuple[Branch, ...]
    arguments: inputs.Arguments
    count: int
    x: Tensor
    rows: Tensor | None = None
    native: bool = False


class PipelineEvaluator(Evaluator):
    """Predicts branches with the network that a pipeline calls.

    Args:
        denoiser: The network.
        layout: Which rows or calls of the pipeline are which branch.
        recorded: Arguments of each branch that the pipeline will call for later in the step.
        states: Leaves that differ from those of the condition, by state.
        models: Further networks.
        convert: From a network's output at an input to a prediction of a branch.
        sample: From a moved input to what the network is given.
        at: A call of the pipeline at another sample.
        batching: `auto` joins what a pipeline joins; `batched` joins all; `sequential` nothing.
        fixed_rows: Whether a pipeline's call keeps its number of rows, wanted or not.
        max_batch: Most rows in one call.
    """

    def __init__(
        self,
        denoiser: PipelineDenoiser,
        layout: Layout,
        recorded: Mapping[str, Mapping[str, Any]],
        states: Mapping[str, Mapping[str, Any]],
        models: Mapping[str, PipelineDenoiser],
        convert: Callable[[Tensor, Tensor, Branch, Context], Tensor],
        sample: Callable[[Tensor, inputs.Arguments], Any],
        at: Callable[[Tensor, Native], Native],
        *,
        batching: Batching = "auto",
        fixed_rows: bool = False,
        max_batch: int | None = None,
    ) -> None:
        super().__init__(denoiser, {}, models, max_batch=max_batch)
        self.layout = layout
        self.recorded = recorded
        self.leaves = states
        self.convert = convert
        self.sample = sample
        self.at = at
        self.plan_batching = batching
        self.fixed_rows = fixed_rows
        self.native: Native | None = None
        self.output: Any = None
        self._slots: dict[str, inputs.Arguments] = {}
        self._paths: list[str] | None = None
        self._cached: caches.States = {}

    def begin(self, native: Native) -> None:
        """Takes the call of a new evaluation."""
        self.native = native
        if self.denoiser.network is not native.network:
            self.denoiser.network = native.network
            self.denoiser.__dict__.pop("attention_layers", None)  # of the network before
        self.denoiser.grid = inputs.grid(native.bound)
        self._slots = {}
        self._conditions = {}

    def read(
        self, branch: Branch, x: Tensor, captures: Sequence[Capture], ctx: Context
    ) -> Predictions:
        native = self.native
        assert native is not None
        with torch.set_grad_enabled(x.requires_grad):
            self.begin(self.at(x, native))
        try:
            return super().read(branch, x, captures, ctx)
        finally:
            self.begin(native)

    def model(self, name: str) -> Denoiser:
        if name and name not in self.models:
            raise ValueError(
                f"steer: the guide asks for a model {name!r}: pass fl.steer(models={{{name!r}: "
                f"network}}); {nearest(name, self.models)}"
            )
        return super().model(name)

    def slot(self, branch: Branch) -> str | None:
        """The branch of the pipeline that one of ours is, up to transforms and perturbations.

        Raises:
            ValueError: It is null, and the pipeline has no null.
        """
        if branch.taken:
            return None
        if branch.nulled:
            name = NULLED.get(branch.nulled, " and ".join(branch.nulled))
        elif branch.state in ("cond", "null", *self.layout.slots):
            name = branch.state
        else:
            return None
        if name not in self.layout.slots:
            if branch.nulled:
                raise ValueError(
                    f"steer: no branch of the pipeline has {name} as its null: it evaluates "
                    f"{', '.join(self.layout.slots)}"
                )
            raise ValueError(
                f"steer: the guide asks for the branch {branch.name!r}, and the pipeline evaluates "
                f"{', '.join(self.layout.slots)} alone: a guidance-distilled model has no null; "
                "icg, tsg, pag and autoguidance need none, and a prompt of your own is "
                "cfg(w, against='negative') with fl.steer(prompts={'negative': '...'})"
            )
        return name

    def arguments(self, branch: Branch) -> inputs.Arguments:
        """The arguments of a branch for the whole batch, without its transforms."""
        slot, state = self.slot(branch), self._state_of(branch)
        key = slot or f"state {state}"
        if key not in self._slots:
            self._slots[key] = self._of_slot(slot) if slot else self._of_state(state)
        return self._slots[key]

    @staticmethod
    def _state_of(branch: Branch) -> str:
        """The prompt of a branch that the pipeline does not know: only texts can be exchanged."""
        if not branch.taken:
            return branch.state
        (name, state), *more = branch.taken
        if name != "text" or more:
            raise ValueError(f"steer: only 'text' can be taken from another state, not {name!r}")
        return state

    def _of_slot(self, slot: str) -> inputs.Arguments:
        native = self.native
        assert native is not None
        if self.layout.kind == "rows":
            i, n = self.layout.slots.index(slot), native.batch
            if len(self.layout.slots) == 1:
                return native.bound
            total = n * len(self.layout.slots)
            return inputs.take(native.bound, total, slice(i * n, (i + 1) * n))
        if slot == native.slot:
            return native.bound
        return inputs.put(native.bound, self.recorded[slot])

    def _of_state(self, state: str) -> inputs.Arguments:
        if state not in self.leaves:
            raise ValueError(
                f"steer: the guide asks for the branch {state!r}: pass "
                f"fl.steer(prompts={{{state!r}: 'text'}}); {nearest(state, self.leaves)}"
            )
        return inputs.put(self._of_slot("cond"), self.leaves[state])

    @property
    def conditions(self) -> frozenset[str]:
        return self.layout.conditions

    def check(self, branch: Branch, run: Run | None = None) -> Condition:
        """The floating-point inputs that tell this branch from others."""
        key = self.slot(branch) or f"state {self._state_of(branch)}"
        if key not in self._conditions:
            found = inputs.leaves(self.arguments(branch))
            self._conditions[key] = Condition({p: found[p] for p in self._condition_paths()})
        return self._conditions[key]

    def _condition_paths(self) -> list[str]:
        if self._paths is None:
            assert self.native is not None
            cond = self._of_slot("cond")
            others = [self._of_slot(s) for s in self.layout.slots if s != "cond"]
            others += [self._of_state(s) for s in self.leaves]
            found = inputs.leaves(cond)
            paths = {p for o in others for p in inputs.differing(cond, o)} if others else found
            self._paths = [p for p in found if p in paths and self._is_condition(p, found[p])]
        return self._paths

    def _is_condition(self, path: str, value: Any) -> bool:
        assert self.native is not None
        name = path.partition(".")[0]
        return (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.ndim > 1
            and len(value) == self.native.batch
            and name not in {*inputs.SAMPLE, *inputs.TIME, *inputs.SHARED, *inputs.STEPWISE}
            and not any(part in path for part in NO_CONDITION)
        )

    def _plain_stack(self, wanted: Any, ctx: Context) -> None:
        return None

    def _predict(
        self,
        denoiser: Denoiser,
        branches: dict[Branch, Tensor | None],
        done: dict[Branch, Tensor],
        ctx: Context,
        *,
        graph: bool = False,
    ) -> None:
        assert self.native is not None
        assert ctx.x is not None
        if graph and caches.enabled(self.native.network):
            raise ValueError(
                "steer: the guide differentiates the network, and a cache of diffusers stands "
                "between its input and its output; disable the cache, or take a guide that "
                "stops at the clean estimate, such as mpgd"
            )
        main = denoiser is self.denoiser
        requests = []
        left = dict(branches)
        if main and not graph and self.layout.kind == "rows" and len(self.layout.slots) > 1:
            by_slot = {self.slot(b): b for b, rows in left.items() if self._is_plain(b, rows)}
            full = set(by_slot) == set(self.layout.slots) and self.plan_batching != "sequential"
            if by_slot and (self.fixed_rows or full):
                laid = tuple(by_slot.get(s, Branch(s, state=s)) for s in self.layout.slots)
                total = self.native.batch * len(laid)
                requests.append(_Request(laid, self.native.bound, total, ctx.x, native=True))
                left = {b: r for b, r in left.items() if b not in by_slot.values()}
        requests += [self._asked(b, rows, done, ctx, graph) for b, rows in left.items()]
        for request in requests:
            for _ in request.branches:
                ctx.run.report.count(ctx.batch, request.rows)
        for group in self._groups(requests):
            outputs = self._run(denoiser, group, ctx)
            for request, output in zip(group, outputs, strict=True):
                for branch, value in zip(
                    request.branches, output.chunk(len(request.branches)), strict=True
                ):
                    value = self.convert(value, request.x, branch, ctx)
                    for change in branch.outputs:
                        value = change(value, ctx)
                    if request.rows is not None:
                        whole = done.get(ctx.plan.base)
                        if whole is None:
                            whole = value.new_zeros(ctx.batch, *value.shape[1:])
                        value = whole.index_copy(0, request.rows, value)
                    done[branch] = value
        if self.fixed_rows:
            for branch in set(done) - set(branches):
                if branch.state in self.layout.slots and branch not in ctx.plan.coefficients:
                    done.pop(branch, None)

    def _is_plain(self, branch: Branch, rows: Tensor | None) -> bool:
        changed = branch.transforms or branch.perturbations or branch.point
        return not changed and (rows is None or self.fixed_rows) and self.slot(branch) is not None

    def _asked(
        self,
        branch: Branch,
        rows: Tensor | None,
        done: dict[Branch, Tensor],
        ctx: Context,
        graph: bool = False,
    ) -> _Request:
        assert self.native is not None
        assert ctx.x is not None
        made, x = self.arguments(branch), ctx.x
        if branch.transforms:
            condition = self.condition(branch, ctx)
            if not condition:
                raise ValueError(
                    f"steer: the branch {branch.name!r} changes the condition, and none of the "
                    f"network's inputs is known as one: {', '.join(sorted(inputs.leaves(made)))}"
                )
            given = inputs.leaves(made)
            made = inputs.put(made, {p: v.to(given[p].dtype) for p, v in condition.items()})
            states = [t.against for t in branch.transforms if hasattr(t, "against")]
            if states:  # the text of another state stands behind the branch's own
                behind = self.arguments(Branch(states[-1], state=states[-1]))
                made = inputs.lengthened(made, given, inputs.leaves(behind))
        if branch.point is not None:
            x = branch.point(x, Predictions(ctx.plan.base, done, ctx.maps), ctx)
        if graph or branch.point is not None:
            made = inputs.put(made, self.sample(x, made))
        count = self.native.batch
        if rows is not None:
            made, count, x = inputs.take(made, count, rows), len(rows), x[rows]
        return _Request((branch,), made, count, x, rows)

    def _groups(self, requests: list[_Request]) -> list[list[_Request]]:
        """The requests of each network call."""
        if self.plan_batching == "batched":
            return [requests]
        if self.plan_batching == "sequential" or self.layout.kind == "calls":
            return [[r] for r in requests]
        # what runs another graph would drift from the pipeline's numbers, were it in its batch
        together = [r for r in requests if not r.native and not _is_perturbed(r)]
        alone = [[r] for r in requests if r.native or _is_perturbed(r)]
        return [*alone, together] if together else alone

    def _run(self, denoiser: Denoiser, group: list[_Request], ctx: Context) -> list[Tensor]:
        """The predictions of each request, in one call where their arguments fit together."""
        if len(group) > 1:
            try:
                joined = inputs.join([r.arguments for r in group], [r.count for r in group])
            except inputs.Apart:
                return [out for request in group for out in self._run(denoiser, [request], ctx)]
        else:
            joined = group[0].arguments
        spans, start = [], 0
        for request in group:
            samples = range(request.count) if request.rows is None else request.rows.tolist()
            size = request.count // len(request.branches)
            for i, branch in enumerate(request.branches):
                captures = ctx.plan.captures.get(branch, ())
                if branch.perturbations or captures:
                    own = samples if len(request.branches) == 1 else range(size)
                    spans.append(Span(start + i * size, own, branch, captures))
            start += request.count
        parts, limit = [], self.max_batch or start
        for first in range(0, start, limit):
            last = min(first + limit, start)
            if start <= limit:
                output = self._forward(denoiser, group, joined, spans, start, ctx)
            else:
                local = [s for span in spans if (s := span.within(first, last))]
                part, maps = inputs.take(joined, start, slice(first, last)), ctx.maps
                ctx.maps = {}
                output = self._forward(denoiser, group, part, local, last - first, ctx, first)
                ctx.maps, found = maps, ctx.maps
                extend(ctx.maps, found)
            ctx.run.report.calls += 1
            parts.append(inputs.stacked(inputs.prediction(output)))
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        return list(torch.split(value, [r.count for r in group]))

    def _forward(
        self,
        denoiser: Denoiser,
        group: list[_Request],
        joined: inputs.Arguments,
        spans: list[Span],
        rows: int,
        ctx: Context,
        first: int = 0,
    ) -> Any:
        """One call: of all rows of a group, or of those from `first` on."""
        native = self.native
        assert native is not None
        if denoiser is not self.denoiser:
            with perturbed(denoiser, spans, ctx, rows, ctx.maps):
                return denoiser.network(**joined)
        untouched = len(group) == 1 and joined is native.bound
        with ExitStack() as stack:
            if caches.enabled(native.network) and not (untouched and self.layout.kind == "rows"):
                name = self._context(group) + (f" from {first}" if first else "")
                caches.require_apart(native.network, name)
                stack.enter_context(caches.context(native.network, name, self._cached))
            stack.enter_context(perturbed(denoiser, spans, ctx, rows, ctx.maps))
            if untouched:
                output = native.inner(*native.args, **native.kwargs)
            else:
                output = native.inner(**joined)
        if self.output is None or not any(r.rows is not None for r in group):
            self.output = output
            if torch.is_grad_enabled():  # not to keep a graph until the next step
                found = inputs.prediction(output)
                kept = inputs.like(inputs.stacked(found).detach(), found)
                self.output = inputs.replaced(output, kept)
        return output

    def _context(self, group: list[_Request]) -> str:
        names = [b.name for r in group for b in r.branches]
        if len(names) == 1:
            return caches.NATIVE.get(names[0], names[0])
        return "+".join(names)


def _is_perturbed(request: _Request) -> bool:
    return any(b.perturbations for b in request.branches)
