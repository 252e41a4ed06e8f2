"""Steps that are nothing but classifier-free guidance: planned once, then by one formula."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairlead.adapters.diffusers import caches, inputs
from fairlead.adapters.diffusers.evaluator import Native
from fairlead.guidance.branch import COND, NULL, Branch
from fairlead.guidance.context import Plan
from fairlead.guidance.terms.cfg import CFG

if TYPE_CHECKING:
    from fairlead.adapters.diffusers.session import Session

Fast = Callable[[inputs.Inner, Any, Any], Any]
"""From a network as it would be called, and its arguments, to what it is made to return."""


class Formula:
    """Classifier-free guidance by a pipeline's own formula, in the dtype it computes in.

    Args:
        scale: `w`.
        weight: `w - 1`.
        from_cond: Whether the formula starts at the conditional prediction.
        wide: Whether it is computed in float32.
        channels: Channels that count for the norm.
        label: Name of the term, or `None` where no norm is wanted.
    """

    def __init__(
        self,
        scale: float,
        weight: float,
        from_cond: bool,
        wide: bool,
        channels: int | None,
        label: str | None,
    ) -> None:
        self.size, self.number = abs(weight), weight if from_cond else scale
        self.factor = torch.tensor(self.number, dtype=torch.float32)
        self.from_cond, self.wide, self.channels, self.label = from_cond, wide, channels, label

    @classmethod
    def of(
        cls, session: "Session", plan: Plan, wanted: Mapping[Branch, Tensor | None]
    ) -> "Formula | None":
        """The pipeline's own formula, where a step of the guide is nothing but that."""
        if plan.base != COND or len(plan.terms) != 1 or wanted != {COND: None, NULL: None}:
            return None
        planned = next(iter(plan.terms.values()))
        weight, positive, negative = planned[0]
        if len(planned) != 1 or isinstance(weight, Tensor):
            return None
        term = next((n for n in session.guide.nodes() if isinstance(n, CFG)), None)
        if positive != COND or negative != NULL or term is None:
            return None
        scale = weight + 1 if weight != term.strength else term.w  # 1 + (w - 1) may not be w
        assert isinstance(scale, float)
        reading = session.setting.reading
        return cls(
            scale,
            weight,
            session.layout.form == "cond",
            reading.wide,
            reading.channels,
            term.label if session.setting.record else None,
        )

    def __call__(self, c: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """The guided prediction, and the length of `c - u` over the batch."""
        if self.wide:
            c, u = c.float(), u.float()
        d = c - u
        norm = None
        if self.label is not None:
            counted = d if self.channels is None else d.narrow(1, 0, self.channels)
            norm = torch.linalg.vector_norm(counted)
        # in place, and with a factor that need not be converted: a step costs tens of microseconds
        if d.dtype == torch.float32:
            made = d.mul_(self.factor).add_(c if self.from_cond else u)
        else:
            made = d.mul_(self.number).add_(c if self.from_cond else u)
        return made, norm


class Notes:
    """What fast steps leave behind: noted without reading anything, written down when asked for.

    Args:
        session: The session whose report they belong to.
    """

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.pending: list[tuple[Any, int | None, Tensor | None, int]] = []
        self.size = 0.0

    @property
    def norms(self) -> list[Tensor]:
        """The norms that were kept."""
        return [norm for _, _, norm, _ in self.pending if norm is not None]

    def taker(self, formula: Formula, native: Native) -> Callable[..., None]:
        """Notes a step: `take(args, kwargs, norm, calls)`."""
        self.size = formula.size
        name = inputs.name_of(native.bound, inputs.TIME) or ""
        place = None if name in native.kwargs else list(native.bound).index(name)
        # schedulers answer for attributes that they do not have, slowly
        append, state = self.pending.append, vars(self.session.setting.pipe.scheduler)

        def take(args: Any, kwargs: Any, norm: Tensor | None, calls: int) -> None:
            time = kwargs.get(name) if place is None or not args else args[place]
            append((time, state.get("_step_index"), norm, calls))

        return take

    def write(self) -> None:
        """Writes the steps into the report."""
        if not self.pending:
            return
        session, report = self.session, self.session.report
        assert session.model is not None
        wanted, run, entries = session.model.wanted or {}, session.model.run, report.entries
        batch, label = entries[-1].batch, next(iter(entries[-1].norms), "")
        levels = [session.level_of(time, index) for time, index, _, _ in self.pending]
        norms = self.norms
        if norms:
            factors = [self.size] * len(norms)
            if session.levels is not None:
                factors = [self.size * session.levels.length(level) for level in levels]
            made = torch.stack(norms)
            lengths = (made * torch.tensor(factors).to(made)).unbind()
        for i, level in enumerate(levels):
            run.advance()
            report.begin(run.step, 0, level.t, wanted, batch)
            if norms:
                entries[-1].norms[label] = lengths[i]
        report.nfe = report.nfe + 2 * len(levels)
        report.calls += sum(calls for _, _, _, calls in self.pending)
        self.pending.clear()


def fast(session: "Session", formula: Formula, native: Native) -> Fast | None:
    """What does, from the next step on, as this one did without planning it again."""
    slots, batching = session.layout.slots, session.setting.batching
    if set(slots) != {"cond", "null"} or batching == "batched":
        return None
    between = hasattr(session.setting.pipe.scheduler, "sigmas_interpol")  # levels off its list
    if between or not isinstance(inputs.sample(native.bound), Tensor):
        return None
    limit, slotted = session.setting.max_batch, session.layout.kind == "rows"
    if limit is not None and native.batch * (len(slots) if slotted else 1) > limit:
        return None
    if slotted:
        return _rows(session, formula, native) if batching == "auto" else None
    return None if caches.enabled(native.network) else _calls(session, formula, native)


def _rows(session: "Session", formula: Formula, native: Native) -> Fast:
    null_first = session.layout.slots[0] == "null"
    note = session.notes.taker(formula, native)

    def fast(inner: inputs.Inner, args: Any, kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        bare = type(output) is tuple
        a, b = (output[0] if bare else inputs.prediction(output)).chunk(2)
        made, norm = formula(b, a) if null_first else formula(a, b)
        note(args, kwargs, norm, 1)
        both = torch.cat((made, made))
        return (both,) if bare else inputs.replaced(output, both)

    return fast


def _calls(session: "Session", formula: Formula, native: Native) -> Fast:
    first, second = session.layout.slots
    recorded = session.setting.recorded[second]
    changed = {name.partition(".")[0]: None for name in recorded}
    other = inputs.put(native.bound, recorded)
    changes = {name: other[name] for name in changed}
    note = session.notes.taker(formula, native)
    known = inputs.parameters(native.network)

    def fast(inner: inputs.Inner, args: Any, kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        if args:
            kwargs = {**dict(zip(known, args, strict=False)), **kwargs}
        ahead = inputs.prediction(inner(**{**kwargs, **changes}))
        own = inputs.prediction(output)
        made, norm = formula(own, ahead) if first == "cond" else formula(ahead, own)
        note((), kwargs, norm, 2)
        session.turn = 1
        session.stored = (made,) if type(output) is tuple else inputs.replaced(output, made)
        return session.stored

    return fast
