"""The algebra: terms add with `+`; rules, schedules and policies pipe with `|`.

A guide is a tree of `Term`, `Sum` and `Pipe`, immutable values all. At an evaluation it is
asked twice, top down: `plan` says which branches are wanted with which coefficients, and
`update` returns, once they are there, the direction to add to the base prediction.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairlead.denoiser import Denoiser
from fairlead.guidance.branch import COND, Branch, Predictions
from fairlead.guidance.context import Context, Place, Run, Weight, magnitude
from fairlead.guidance.geometry import inner, norm, opposed, project
from fairlead.guidance.node import (
    ALL_DOMAINS,
    CONTINUOUS,
    REGISTRY,
    TOKEN_DOMAINS,
    Node,
    Scale,
    less_one,
    register,
)
from fairlead.parameters import FINITE, Range

__all__ = [
    "ALL_DOMAINS",
    "CONTINUOUS",
    "FINITE",
    "REGISTRY",
    "TOKEN_DOMAINS",
    "Context",
    "Difference",
    "Gains",
    "Guide",
    "Node",
    "Pipe",
    "Place",
    "Policy",
    "Predictions",
    "Range",
    "Rows",
    "Rule",
    "Scale",
    "Schedule",
    "Sum",
    "Term",
    "inner",
    "less_one",
    "norm",
    "opposed",
    "project",
    "register",
]


@dataclass(frozen=True)
class Schedule(Node):
    """Maps the weights of the terms before it, or their branches, over the course of a run."""

    kind: ClassVar[str] = "schedule"
    domains: ClassVar[frozenset[str]] = ALL_DOMAINS

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        """The weight of a term (`w - 1` for CFG) at this evaluation; 0 evaluates nothing."""
        return weight

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        """The branch that stands in for one of the terms before it."""
        return branch

    def admit(self, guide: "Guide") -> None:
        """Refuses what it cannot be piped after; asked when the guide is made."""

    def check(self, denoiser: Denoiser, run: Run) -> None:
        """Refuses a model or a run that it cannot serve; asked before the first step."""


Rows = Tensor | None
"""Indices of samples of the batch, `None` for all."""


@dataclass(frozen=True)
class Policy(Schedule):
    """Decides which branches are evaluated, and what stands in for those that are not.

    It is offered the branches that the terms before it, and no others, want beside the base;
    where the base itself is not evaluated (CFG at ``w = 0``) it is offered none.
    What depends on predictions must depend on those that `observe` sees: they are the same on
    every device that takes part, and so are then the decisions.
    """

    kind: ClassVar[str] = "policy"

    def skip(self, offered: Mapping[Branch, Rows], ctx: Context) -> Mapping[Branch, Rows]:
        """The branches and rows among the offered that it provides itself."""
        return {}

    def fill(self, branch: Branch, predictions: Predictions, ctx: Context) -> tuple[Tensor, str]:
        """The prediction of a skipped branch and its provenance, given the evaluated ones.

        Shaped like the base; only the rows that were skipped are read.
        """
        raise KeyError(branch.name)

    def observe(self, predictions: Predictions, ctx: Context) -> None:
        """Sees all predictions of the evaluation; `ctx.evaluated` says which the network made."""


@dataclass(frozen=True)
class Rule(Node):
    """A map on the update; per sample, over all dimensions but the first, unless it says so.

    `needs` lists branches that it reads besides those of the terms before it.
    """

    kind: ClassVar[str] = "rule"
    needs: ClassVar[tuple[Branch, ...]] = ()

    @abstractmethod
    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        """The new update: what is added to `predictions.base`."""


Difference = tuple[float | tuple[float, ...], Branch, Branch]
"""A strength and the two branches whose difference it weighs."""

Gains = tuple[Schedule, ...]
"""Schedules over a term, the nearest first."""


class Guide(ABC):
    """A term, a sum or a pipe. Combine with `+` and `|`."""

    def __add__(self, other: "Guide") -> "Guide":
        if not isinstance(other, Guide):
            return NotImplemented
        parts = [*_summands(self), *_summands(other)]
        return parts[0] if len(parts) == 1 else Sum(tuple(parts))

    def __or__(self, other: Schedule | Rule) -> "Guide":
        if not isinstance(other, (Schedule, Rule)):
            if isinstance(other, Guide):
                raise TypeError(
                    f"{other} adds a direction: join it with +; after | stands a rule, a schedule "
                    "or a policy"
                )
            return NotImplemented
        return Pipe(self, other)

    @abstractmethod
    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        """Enters the wanted branches and the weights of the terms into `ctx`."""

    @abstractmethod
    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        """The direction to add to the base, and the total absolute weight in it."""

    @abstractmethod
    def nodes(self) -> Iterator[Node]:
        """Every term, rule, schedule and policy, left to right."""

    def base(self, ctx: Context, place: Place = ()) -> Branch:
        """The branch that terms are added to."""
        return COND

    def renoise(self, predictions: Predictions, ctx: Context, denoise: Tensor) -> Tensor | None:
        """The other end of the prediction, where it differs from `denoise`."""
        return None

    @cached_property
    def steady(self) -> bool:
        """Whether it plans the same at every evaluation."""
        return not any(
            isinstance(n, Schedule)
            or (isinstance(n, Term) and type(n).strength_at is not Term.strength_at)
            for n in self.nodes()
        )

    @property
    def domains(self) -> frozenset[str]:
        """Domains that every part of it serves."""
        return ALL_DOMAINS.intersection(*(n.domains for n in self.nodes()))

    def require(self, domain: str) -> None:
        """Refuses a domain that a part of it does not serve.

        Raises:
            ValueError: Names the part, the domain, and those that it serves.
        """
        for node in self.nodes():
            if domain not in node.domains:
                raise ValueError(
                    f"{node.name}: does not serve the domain {domain!r}, only "
                    f"{', '.join(sorted(node.domains))}"
                )

    def describe(self, report: Any = None) -> Any:
        """Branches, coefficients, rules and cost; with a report also the norms of a run."""
        from fairlead.guidance.describe import describe

        return describe(self, report)


def _summands(guide: Guide) -> tuple[Guide, ...]:
    return guide.parts if isinstance(guide, Sum) else (guide,)


def _check_renoise(guide: Guide) -> None:
    claims = [n for n in guide.nodes() if getattr(n, "claims_renoise", False)]
    if len(claims) > 1:
        raise ValueError(
            f"{claims[0]} and {claims[1]} both claim the renoise end of the prediction; keep one"
        )


@dataclass(frozen=True)
class Term(Node, Guide):
    """A weight times the difference of two branches, `positive - negative`.

    Subclasses say `strength` (0 is off) and `negative`; `positive` is the base. Those that weigh
    several differences say `differences` instead. `affine` says whether the weighted differences
    are what is added, as they stand.
    """

    kind: ClassVar[str] = "term"
    affine: ClassVar[bool] = True
    claims_renoise: ClassVar[bool] = False

    @property
    @abstractmethod
    def strength(self) -> float | tuple[float, ...]:
        """Weight of the difference, `w - 1` for CFG."""

    def strength_at(self, ctx: Context) -> float | tuple[float, ...]:
        """The strength at an evaluation, for terms with a schedule of their own."""
        return self.strength

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Strength, positive and negative branch of each weighted difference that it adds."""
        return ((self.strength, self.positive, self.negative),)

    def differences_at(self, ctx: Context) -> tuple[Difference, ...]:
        """The differences at an evaluation."""
        return ((self.strength_at(ctx), self.positive, self.negative),)

    @property
    @abstractmethod
    def negative(self) -> Branch:
        """The branch that is pushed away from."""

    @property
    def positive(self) -> Branch:
        """The branch that is pushed towards."""
        return COND

    @property
    def looks(self) -> tuple[Branch, ...]:
        """Branches that it looks at beside those of its differences."""
        return ()

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        planned = []
        for strength, positive, negative in self.differences_at(ctx):
            weight = self.weigh(strength, ctx, gains, gain)
            if isinstance(weight, float) and weight == 0.0:
                continue
            planned.append(
                (weight, self.seen(positive, ctx, gains), self.seen(negative, ctx, gains))
            )
        if planned:
            ctx.plan.enter(place, planned)
            ctx.plan.affine &= self.affine
            for branch, capture in self.captures:
                ctx.plan.capture(self.seen(branch, ctx, gains), capture)

    @staticmethod
    def weigh(
        strength: float | tuple[float, ...], ctx: Context, gains: Gains, gain: float
    ) -> Weight:
        """A strength under the schedules over the term and the sampler's gain."""
        weight: Weight
        if isinstance(strength, tuple):
            weight = ctx.per_sample(strength) if any(strength) else 0.0
        else:
            weight = strength
        for schedule in gains:
            weight = schedule.weight(weight, ctx)
        return weight * gain

    @staticmethod
    def seen(branch: Branch, ctx: Context, gains: Gains) -> Branch:
        """A branch under the schedules over the term."""
        if branch.nulled or branch.taken:
            branch = branch.among(ctx.conditions)
        for schedule in gains:
            branch = schedule.branch(branch, ctx)
        return branch

    def direction(self, positive: Branch, negative: Branch, predictions: Predictions) -> Tensor:
        """What is weighted and added: a new tensor, the difference unless `affine` is false."""
        values = predictions.values_by_branch
        return values[positive] - values[negative]

    @cached_property
    def label(self) -> str:
        """Its text, made once."""
        return str(self)

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        update: Tensor | None = None
        total: Weight = 0.0
        for weight, positive, negative in ctx.plan.terms.get(place, ()):
            part = self.direction(positive, negative, predictions)
            part = part.mul_(weight) if isinstance(weight, float) else part * weight
            update = part if update is None else update.add_(part)
            total = total + magnitude(weight)
        if update is not None and ctx.run.report.record and not ctx.renoising:
            ctx.run.report.norm(self.label, update)
        return update, total

    def move(self, x: Tensor, ctx: Context, evaluator: Any) -> Tensor:
        """The sample moved before a step, for terms that enter themselves in `Plan.moves`."""
        return x

    def nodes(self) -> Iterator[Node]:
        yield self


@dataclass(frozen=True)
class Sum(Guide):
    """Terms side by side; `Sum(())`, text `none`, is no guidance."""

    parts: tuple[Guide, ...] = ()

    def __post_init__(self) -> None:
        if any(isinstance(n, Schedule) and moves_base(n) for n in self.nodes()):
            raise ValueError(
                f"{self}: a schedule inside the sum changes the base branch for one summand only; "
                "pipe it after the whole sum"
            )
        _check_renoise(self)

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        for i, part in enumerate(self.parts):
            part.plan(ctx, gains, gain, (*place, i))

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        total: Tensor | None = None
        weights: Weight = 0.0
        for i, part in enumerate(self.parts):
            update, weight = part.update(predictions, ctx, (*place, i))
            if update is not None:
                total = update if total is None else total + update
                weights = weights + weight
        return total, weights

    def nodes(self) -> Iterator[Node]:
        for part in self.parts:
            yield from part.nodes()

    def renoise(self, predictions: Predictions, ctx: Context, denoise: Tensor) -> Tensor | None:
        for part in self.parts:
            end = part.renoise(predictions, ctx, denoise)
            if end is not None:
                return end
        return None

    def __str__(self) -> str:
        texts = (f"({p})" if isinstance(p, Pipe) else str(p) for p in self.parts)
        return " + ".join(texts) or "none"


def moves_base(schedule: Schedule) -> bool:
    """Whether a schedule replaces branches, and with them the base."""
    return type(schedule).branch is not Schedule.branch


@dataclass(frozen=True)
class Pipe(Guide):
    """A guide through a rule, a schedule or a policy."""

    left: Guide
    right: Rule | Schedule

    def __post_init__(self) -> None:
        _check_renoise(self)
        if isinstance(self.right, Schedule):
            self.right.admit(self.left)

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        inner = (*place, 0)
        if isinstance(self.right, Schedule):
            bound = _Bound(self.right, place)
            if isinstance(self.right, Policy):
                ctx.plan.policies.append((self.right, place))
            self.left.plan(ctx, (bound, *gains), gain, inner)  # type: ignore[arg-type]
            return
        before = len(ctx.plan.terms)
        self.left.plan(ctx, gains, gain, inner)
        if len(ctx.plan.terms) > before:
            ctx.plan.affine = False
            ctx.plan.look_at(ctx.plan.base)
            for branch in self.right.needs:
                ctx.plan.look_at(Term.seen(branch, ctx, gains))
            for branch, capture in self.right.captures:
                ctx.plan.capture(Term.seen(branch, ctx, gains), capture)

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        update, weight = self.left.update(predictions, ctx, (*place, 0))
        if update is None or isinstance(self.right, Schedule):
            return update, weight
        ctx.place = place
        if isinstance(weight, float):
            ctx.weight = weight
            return self.right.apply(update, predictions, ctx), weight
        off = weight == 0
        ctx.weight = torch.where(off, 1.0, weight)
        # samples whose terms are off stay conditional, as they would in a batch of their own
        return torch.where(off, update, self.right.apply(update, predictions, ctx)), weight

    def nodes(self) -> Iterator[Node]:
        yield from self.left.nodes()
        yield self.right

    def base(self, ctx: Context, place: Place = ()) -> Branch:
        base = self.left.base(ctx, (*place, 0))
        ctx.place = place
        return self.right.branch(base, ctx) if isinstance(self.right, Schedule) else base

    def renoise(self, predictions: Predictions, ctx: Context, denoise: Tensor) -> Tensor | None:
        return self.left.renoise(predictions, ctx, denoise)

    def __str__(self) -> str:
        return f"{self.left} | {self.right}"


class _Bound:
    """A schedule at its place in the tree, so that it recalls its own memory."""

    __slots__ = ("place", "schedule")

    def __init__(self, schedule: Schedule, place: Place) -> None:
        self.schedule, self.place = schedule, place

    def weight(self, weight: Weight, ctx: Context) -> Weight:
        ctx.place = self.place
        return self.schedule.weight(weight, ctx)

    def branch(self, branch: Branch, ctx: Context) -> Branch:
        ctx.place = self.place
        return self.schedule.branch(branch, ctx)
