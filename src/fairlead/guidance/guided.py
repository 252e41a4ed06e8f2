"""A denoiser under a guide: what is planned, what is evaluated, and how it is put together."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fairlead.denoiser import Denoiser
from fairlead.energy.base import Energy
from fairlead.guidance.algebra import Guide, Policy, Rows, Rule, Schedule, Term
from fairlead.guidance.branch import COND, AttentionPerturbation, Branch, Predictions
from fairlead.guidance.context import Context, Place, Plan, Run, Weight, magnitude
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.masks import require_masks
from fairlead.prediction import Prediction
from fairlead.schedules import Level

Reward = Callable[[Tensor], Tensor]
"""Scores clean samples, `(B, ...)` to `(B,)`; higher is better."""


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
        self.start: Level | None = None
        self.last: Prediction | None = None
        self.predictions: Predictions | None = None
        self.ctx: Context | None = None
        self.wanted: dict[Branch, Rows] | None = None
        self.moving = any(getattr(node, "moves", False) for node in guide.nodes())
        self._drawn = 0
        self._visit = self._visits = 0

    @property
    def step(self) -> int:
        return self.run.step

    @property
    def steps(self) -> int:
        return self.run.steps

    @property
    def levels(self) -> Sequence[Level]:
        return self.run.levels

    @property
    def masks(self) -> Mapping[str, Tensor]:
        return self.run.masks

    @property
    def reference(self) -> Tensor | None:
        return self.run.reference

    @property
    def memory(self) -> dict[str, Any]:
        return self.run.memory

    @property
    def carried(self) -> dict[str, Tensor]:
        return self.run.carried

    def take(self, index: Tensor) -> None:
        self.run.take(index)

    def uniform(self, key: str, count: int = 1) -> Tensor:
        drawn = [self.run.uniform(None, f"{key} {i}")[0] for i in range(count)]
        return torch.tensor(drawn, dtype=torch.float64)

    @cached_property
    def groups(self) -> Tensor:
        rows = [
            torch.unique(v.flatten(1), dim=0, return_inverse=True)[1].cpu()
            for condition in self.evaluator.states.values()
            for v in (v.reshape(len(v), -1) for v in condition.values())
        ]
        if not rows:
            batch = self.ctx.batch if self.ctx is not None else 1
            return torch.zeros(batch, dtype=torch.long)
        numbers: Tensor = torch.unique(torch.stack(rows, 1), dim=0, return_inverse=True)[1]
        return numbers

    def reward(self, name: str) -> Reward:
        return self.run.reward("sampler", name)

    def energy(self, name: str) -> Energy:
        return self.run.energy("sampler", name)

    @property
    def parts(self) -> list[tuple[Weight, Tensor]]:
        predictions, ctx = self.predictions, self.ctx
        if predictions is None or ctx is None or not ctx.plan.affine:
            raise ValueError(f"{self.guide} is not affine in its branches: leave out its rules")
        values = predictions.values_by_branch
        return [(c, values[b]) for b, c in _affine(ctx.plan).items() if b in values]

    def log_density(self, x: Tensor, level: Level) -> Tensor:
        ctx = self._context(x, level)
        ctx.move(x, level, self.start or level)
        ctx.plan = Plan(self.guide.base(ctx))
        self.guide.plan(ctx, (), 1.0, ())
        if not ctx.plan.affine:
            raise ValueError(f"{self.guide} has no density: leave out its rules")
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for branch, weight in _affine(ctx.plan).items():
            if not _equals(weight, 0.0):
                scale = weight.flatten() if isinstance(weight, Tensor) else weight
                total = total + scale * self.evaluator.log_density(branch, ctx)
        return total

    def check(self) -> None:
        """Asks for every branch that the guide can want, so that what is missing is named now.

        Raises:
            ValueError: A condition state, a null, a model, a layer or a mask is missing, or a
                schedule or policy cannot serve the model or the run.
        """
        for node in self.guide.nodes():
            for name in getattr(node, "energies", ()):
                node.suits(self.run.energy(node.name, name))  # type: ignore[attr-defined]
        require_masks(self.guide, self.run)
        for branch in branches(self.guide):
            denoiser = self.evaluator.model(branch.model)
            _same_levels(branch.model, self.evaluator.denoiser, denoiser)
            known = self.evaluator.conditions
            condition = self.evaluator.check(branch.among(known), self.run)
            for transform in branch.transforms:
                transform.check(condition, denoiser)
            for perturbation in branch.perturbations:
                if isinstance(perturbation, AttentionPerturbation):
                    perturbation.layers(denoiser)
                else:
                    perturbation.modules(denoiser)
        for node in self.guide.nodes():
            for branch, capture in node.captures:
                capture.layers(self.evaluator.model(branch.model))
            if isinstance(node, Schedule):
                node.check(self.evaluator.denoiser, self.run)

    def begin(self, level: Level) -> None:
        """Begins the next step, at a level."""
        self.run.advance()
        self.start = level
        self._drawn = 0

    def enter(self, x: Tensor, level: Level) -> Tensor:
        """The sample as the step finds it: moved by the terms that act before a step."""
        if not self.moving:
            return x
        ctx = self.context(x, level)
        self._plan(ctx, 1.0)
        for term, place in ctx.plan.moves:
            ctx.place = place
            x = term.move(x, ctx, self.evaluator)
            ctx.move(x, level, self.start or level)
        ctx.release()
        return x

    def noise(self, x: Tensor) -> Tensor:
        """Standard normal noise like `x`, fixed by seed, sample, step and draw."""
        self._drawn += 1
        key = f"sampler, visit {self._visit}" if self._visit else "sampler"
        return self.run.normal(x, key, self._drawn)

    @contextmanager
    def revisit(self, step: int) -> Iterator[None]:
        """Inside, an earlier step is the current one; its noise is drawn anew."""
        kept = self.run.step, self.start, self._drawn, self._visit
        self._visits += 1
        self.run.step, self.start = step, self.run.levels[step]
        self._drawn, self._visit = 0, self._visits
        try:
            yield
        finally:
            self.run.step, self.start, self._drawn, self._visit = kept

    def __call__(self, x: Tensor, level: Level, *, gain: float = 1.0) -> Prediction:
        """Guided prediction at `x`; `gain` multiplies every weight, 0 is conditional."""
        run, ctx = self.run, self.context(x, level)
        if self.wanted is None or gain != 1.0 or not self.guide.steady:
            wanted = self._plan(ctx, gain)
        else:
            wanted = self.wanted
        run.report.begin(run.step, run.stage, level.t, wanted, ctx.batch)
        try:
            if ctx.plan.policies:
                predictions = under_policies(wanted, ctx, lambda left: self.evaluator(left, ctx))
            else:
                values = self.evaluator(wanted, ctx)
                predictions = Predictions(ctx.plan.base, values, ctx.maps)
            self.predictions = predictions
            self.last = finish(self.guide, predictions, ctx)
        finally:
            ctx.release()
        run.stage += 1
        return self.last

    def context(self, x: Tensor, level: Level) -> Context:
        """The context of an evaluation."""
        ctx = self.ctx
        if ctx is None or ctx.batch != x.shape[0]:
            ctx = self.ctx = self._context(x, level)
            self.wanted = None
        ctx.move(x, level, self.start or level)
        return ctx

    def _context(self, x: Tensor, level: Level) -> Context:
        ctx = Context(x, level, self.run, self.evaluator.denoiser)
        ctx.conditions = self.evaluator.conditions
        return ctx

    def _plan(self, ctx: Context, gain: float) -> dict[Branch, Rows]:
        ctx.plan = Plan(self.guide.base(ctx))
        self.guide.plan(ctx, (), gain, ())
        wanted = rows_to_evaluate(ctx)
        self.wanted = wanted if gain == 1.0 else None
        return wanted


def _same_levels(name: str, sampled: Denoiser, other: Denoiser) -> None:
    """Refuses a network that was trained under other noise levels than the sampled one.

    Denoisers with a `predict` of their own and networks of prediction `edm` go by the level that
    they are shown, and may differ.

    Raises:
        ValueError: Names the model, and where the two differ.
    """
    ours, theirs = sampled.schedule, other.schedule
    own = type(other).predict is not Denoiser.predict or other.prediction == "edm"
    if own or ours == theirs or type(sampled).predict is not Denoiser.predict:
        return
    for share in (0.25, 0.5, 0.75):
        a = ours.level(ours.t_min + share * (ours.t_max - ours.t_min))
        b = theirs.level_at(a.log_snr)
        times = [float(s.network_time(torch.tensor(v.t))) for s, v in ((ours, a), (theirs, b))]
        pairs = {"the signal level": (a.alpha, b.alpha), "the network's time": tuple(times)}
        for what, (one, two) in pairs.items():
            if not math.isclose(one, two, rel_tol=1e-3, abs_tol=1e-6):
                raise ValueError(
                    f"the model {name!r} was trained under other noise levels than the sampled "
                    f"one: at a log-SNR of {a.log_snr:.2f} {what} is {two:.4g}, not {one:.4g}"
                )


def under_policies(
    wanted: dict[Branch, Rows],
    ctx: Context,
    evaluate: Callable[[dict[Branch, Rows]], dict[Branch, Tensor]],
) -> Predictions:
    """The predictions of the wanted branches: those that no policy provides are evaluated.

    Each policy decides about all its branches at once, the nearest to the terms first. What
    another branch needs, whose attention is read or whose gradient is taken, is evaluated all
    the same.
    """
    ctx.scratch = {}
    claims = _claims(wanted, ctx)
    evaluated = ctx.evaluated = _left(wanted, claims, ctx)
    values = evaluate(evaluated)
    predictions = Predictions(ctx.plan.base, values, ctx.maps)
    for branch, (policy, place, _) in claims.items():
        ctx.place = place
        value, provenance = policy.fill(branch, predictions, ctx)
        rows = evaluated.get(branch)
        if rows is not None:  # some samples were evaluated
            value = value.index_copy(0, rows, values[branch][rows])
        values[branch] = value
        ctx.run.report.provided(branch.name, provenance)
    for policy, place in ctx.plan.policies:
        ctx.place = place
        policy.observe(predictions, ctx)
    return predictions


_Claim = tuple[Policy, Place, Rows]
"""A policy that provides a branch, where it stands, and the rows it provides."""


def _claims(wanted: dict[Branch, Rows], ctx: Context) -> dict[Branch, _Claim]:
    plan, claims = ctx.plan, dict[Branch, _Claim]()
    ctx.offered = {}
    if plan.base not in wanted:
        return {}  # nothing to stand on
    for policy, place in reversed(plan.policies):
        inside, outside = set[Branch](), {plan.base}
        for at, planned in plan.terms.items():
            mine = inside if at[: len(place) + 1] == (*place, 0) else outside
            mine.update(b for _, positive, negative in planned for b in (positive, negative))
        outside.update(branch for _, branch in plan.gradients.values())  # differentiated
        free = inside - outside - claims.keys() - plan.captures.keys() - plan.through
        offered = {b: rows for b, rows in wanted.items() if b in free}
        ctx.place, ctx.offered[place] = place, offered
        asked = policy.skip(offered, ctx)
        for branch, rows in asked.items():
            if branch not in offered:
                what = "the base branch" if branch == plan.base else "a branch that is not its own,"
                raise ValueError(f"{policy}: a policy may not skip {what} {branch.name!r}")
            claims[branch] = (policy, place, rows)
    return claims


def _left(
    wanted: dict[Branch, Rows], claims: dict[Branch, _Claim], ctx: Context
) -> dict[Branch, Rows]:
    """What is evaluated: the wanted without the claimed, and without what only those need.

    Claims on what an evaluated branch needs are dropped.
    """
    for_itself = [b for b in wanted if b in ctx.plan.coefficients or b == ctx.plan.base]
    left: dict[Branch, Rows] = {}
    for branch in for_itself:
        rows = wanted[branch]
        if branch in claims:
            provided = claims[branch][2]
            if provided is None:
                continue
            off = torch.zeros(ctx.batch, dtype=torch.bool)
            off[slice(None) if rows is None else rows.cpu()] = True
            off[provided.cpu()] = False
            if not bool(off.any()):
                continue
            rows = off.nonzero().flatten()
            rows = rows if ctx.x is None else rows.to(ctx.x.device)
        left[branch] = rows
    for branch in list(left):
        _enter_needs(branch, left)
    for branch, rows in left.items():
        if rows is None:
            claims.pop(branch, None)
    return left


def branches(guide: Guide) -> list[Branch]:
    """Every branch that a guide can ask for, under no schedule."""
    found = {COND: None}
    for node in guide.nodes():
        if isinstance(node, Term):
            found |= dict.fromkeys(node.looks)
            for strength, positive, negative in node.differences:
                if strength != 0.0 or node.claims_renoise:
                    found |= {positive: None, negative: None}
        elif isinstance(node, Rule):
            found |= dict.fromkeys(node.needs)
    return list(found)


def rows_to_evaluate(ctx: Context) -> dict[Branch, Rows]:
    """The branches to evaluate, each with its rows: `None` for all.

    A branch whose coefficients cancel is left out, also for single samples, unless a rule
    reads it or another branch needs it.
    """
    base = ctx.plan.base
    needed: dict[Branch, Rows] = {}
    # a rule sees single terms, so under rules only what no term weighs is left out
    active = ctx.plan.coefficients if ctx.plan.affine else _magnitudes(ctx.plan)
    # what cancels in a sum of several is 0 but for rounding
    slack = 1e-12 if sum(map(len, ctx.plan.terms.values())) > 1 else 0.0
    cancels = ctx.plan.affine and _near(active.get(base, 0.0), -1.0, slack)
    if not cancels or base in ctx.plan.read:
        needed[base] = None
    for branch, coefficient in active.items():
        if branch == base:
            continue
        read = branch in ctx.plan.read
        if not read and _near(coefficient, 0.0, slack):
            continue
        rows = None
        if not read and isinstance(coefficient, Tensor) and _by_sample(coefficient, ctx):
            on = (coefficient != 0).reshape(ctx.batch, -1).any(1)
            rows = None if bool(on.all()) else on.nonzero().flatten()
        needed[branch] = rows
    for branch in list(needed):
        _enter_needs(branch, needed)
    return needed


def _enter_needs(branch: Branch, needed: dict[Branch, Rows]) -> None:
    for need in branch.needs:
        needed[need] = None
        _enter_needs(need, needed)


def _magnitudes(plan: Plan) -> dict[Branch, Weight]:
    """The sum of the absolute weights of the terms that a wanted branch is part of."""
    total: dict[Branch, Weight] = dict.fromkeys(plan.coefficients, 0.0)
    for weight, positive, negative in chain.from_iterable(plan.terms.values()):
        for branch in (positive, negative):
            total[branch] = total[branch] + magnitude(weight)
    return total


def _affine(plan: Plan) -> dict[Branch, Weight]:
    """The coefficient of each branch in an affine prediction, the base's own 1 included."""
    return {**plan.coefficients, plan.base: 1.0 + plan.coefficients.get(plan.base, 0.0)}


def _equals(weight: float | Tensor, value: float) -> bool:
    return not isinstance(weight, Tensor) and weight == value


def _near(weight: Weight, value: float, slack: float) -> bool:
    return not isinstance(weight, Tensor) and abs(weight - value) <= slack


def _by_sample(weight: Tensor, ctx: Context) -> bool:
    """Whether it may differ between samples: one number for each, or one mask for each."""
    return weight.ndim == ctx.ndim and len(weight) == ctx.batch


def finish(guide: Guide, predictions: Predictions, ctx: Context) -> Prediction:
    """The guided prediction from the branches: both ends.

    Raises:
        FloatingPointError: A prediction is NaN or infinite; names the branch and the step.
    """
    values = predictions.values_by_branch
    base = predictions.base_branch
    renoise = None
    if base not in values or not all(
        p in values and n in values for _, p, n in chain.from_iterable(ctx.plan.terms.values())
    ):  # linear, and a branch cancels
        denoise = sum_of([(c, values[b]) for b, c in _affine(ctx.plan).items() if b in values])
    else:
        renoise = _without_gradients(guide, predictions, ctx) if ctx.plan.apart else None
        update, _ = guide.update(predictions, ctx, ())
        denoise = predictions.base if update is None else predictions.base + update
    if ctx.plan.renoise:
        renoise = guide.renoise(predictions, ctx, denoise)
    if ctx.run.check:
        # the norms of the terms, where they are kept, are infected by every branch in them
        seen = ctx.run.report.total_norm() if ctx.plan.affine else None
        total = denoise.sum() if seen is None else seen
        if renoise is not None:
            total = total + renoise.sum()
        if not math.isfinite(total.item()):
            _blame(predictions, denoise, ctx)
    return Prediction(denoise, denoise if renoise is None else renoise)


def _without_gradients(guide: Guide, predictions: Predictions, ctx: Context) -> Tensor:
    """The renoise end under terms that move the other end alone: the guide without them."""
    ctx.renoising = True
    try:
        update, _ = guide.update(predictions, ctx, ())
    finally:
        ctx.renoising = False
    return predictions.base if update is None else predictions.base + update


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
