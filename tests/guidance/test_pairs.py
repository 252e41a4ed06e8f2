"""Every pair of methods: it works as its parts say, or it is refused when it is put together.

Each pair runs two steps on the tiny network. What it costs must follow from the branches that its
parts want alone, and what it predicts must be what `fl.combine` makes of the recorded branches.
"""

import warnings
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance import guided
from fairlead.guidance.algebra import REGISTRY, Guide, Rule, Term
from fairlead.guidance.branch import COND, Branch
from fairlead.schedules import Level
from fairlead.testing.checks import ENERGIES, MASKS, draw, networks
from fairlead.testing.networks import tiny_denoiser
from fairlead.testing.subject import example

METHODS = {
    name: example(cls)
    for name, cls in REGISTRY.items()
    if "continuous" in cls.domains and cls.__module__.startswith("fairlead.")
}
TERMS = {name: m for name, m in METHODS.items() if isinstance(m, Term)}
PIPED = {name: m for name, m in METHODS.items() if name not in TERMS}
STEPS, N = 2, 2

UNCOMBINED = {
    "condition_mixture": "it asks the model for the last time of its schedule",
    "gfcg": "it asks the model for its classes",
}
"""Methods that look at the sampled model, which `fl.combine` has not."""

BESIDE = {"layout": "it evaluates the network before a step, too"}
"""Methods that cost more than the branches of a step."""

NETWORK = "which needs the network: use fl.sample"
"""What `fl.combine` says to guides that differentiate a branch: values alone do not do."""


class Unready(ValueError):
    """What the tiny network lacks was named before it was called."""


@dataclass
class Seen:
    """One evaluation: the branches' values, where, and what came of them."""

    values: dict[str, Tensor]
    wanted: frozenset[Branch]
    cancelled: frozenset[Branch]
    provided: frozenset[str]
    x: Tensor
    level: Level
    denoise: Tensor
    twins: bool


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(dtype=torch.float64)


@pytest.fixture(scope="module")
def reader():
    """A denoiser of texts, for guides with a term that reads attention to them."""
    return tiny_denoiser(dtype=torch.float64, text=True)


@pytest.fixture
def run(denoiser, reader, monkeypatch):
    """Samples under a guide; returns the result, the rows seen, and each evaluation."""
    seen: list[Seen] = []
    finish = guided.finish

    def recorded(guide, predictions, ctx):
        result = finish(guide, predictions, ctx)
        values = predictions.values_by_branch
        entry = ctx.run.report.entries[-1]
        seen.append(
            Seen(
                {b.name: values[b] for b in (*called(ctx.plan), *values) if b in values},
                frozenset(entry.wanted),
                frozenset(b for b, w in ctx.plan.coefficients.items() if is_zero(w)),
                frozenset(entry.provided),
                ctx.x,
                ctx.level,
                result.denoise,
                max(Counter(b.name for b in values).values()) > 1,
            )
        )
        return result

    monkeypatch.setattr(guided, "finish", recorded)

    def sampled(guide):
        seen.clear()
        texts = any(n.reads_text for n in guide.nodes() if isinstance(n, Term))
        model = reader if texts else denoiser
        before = sum(n.rows for n in networks(model))
        options = {"sampler": "ddim", "steps": STEPS, "n": N, "dtype": torch.float64}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                out = draw(guide, model, **options)
            except ValueError as error:
                if sum(n.rows for n in networks(model)) > before:
                    raise
                raise Unready(str(error)) from error
        return out, sum(n.rows for n in networks(model)) - before, list(seen)

    return sampled


ALONE: dict[str, list[frozenset[Branch]]] = {}
"""The branches that each guide wants alone, step by step, kept for all tests of the file."""


@pytest.fixture
def wanted(run):
    """The branches that a guide wants alone, step by step."""

    def of(guide: Guide):
        text = str(guide)
        if text not in ALONE:
            ALONE[text] = [s.wanted for s in run(guide)[2]]
        return ALONE[text]

    return of


def problem(guide, run, bound, exact):
    """What is wrong with a pair, if anything.

    Args:
        guide: The pair.
        run: The fixture.
        bound: For each step the branches that its parts want.
        exact: Whether it must want just these, or may do with less.
    """
    looks = any(n.name in UNCOMBINED for n in guide.nodes())
    exact = exact and not looks
    try:
        out, rows, seen = run(guide)
    except Unready:
        return None
    except Exception as error:
        return f"fails while sampling: {type(error).__name__}: {error}"
    if int(out.nfe.sum()) != rows:
        return f"reports {out.nfe.tolist()} evaluations, the networks saw {rows} rows"
    if not bool(out.x.isfinite().all()):
        return "is not finite"
    for i, (step, least) in enumerate(zip(seen, bound, strict=True)):
        # a schedule may put others in the place of branches: there only the names are the same
        some = set(names(step.wanted)) <= set(names(least))
        same = step.wanted <= least <= step.wanted | step.cancelled
        if not (same if exact else some):
            return f"wants {names(step.wanted)} in step {i}, its parts {names(least)}"
    beside = any(n.name in BESIDE for n in guide.nodes())
    if exact and not beside and not any(s.provided for s in seen):
        least = N * sum(len(s.wanted) for s in seen)
        if rows != least:
            return f"costs {rows} rows, not {least}"
    return None if looks else combined(guide, seen)


def is_zero(weight):
    """Whether a weight is off for every sample and place."""
    return not isinstance(weight, Tensor) and weight == 0.0


def called(plan):
    """The branches of all terms, under every name that one of them is called by."""
    return [b for parts in plan.terms.values() for _, *pair in parts for b in pair]


def names(branches):
    """For messages."""
    return sorted(b.name for b in branches)


def combined(guide, seen):
    """Compares with `fl.combine` on the recorded branches."""
    if any(s.twins for s in seen):
        return "has two branches of one name"
    levels = fl.schedules.EDM().grid(STEPS)
    kept = {"check": False, "record": False, "levels": levels, "energies": ENERGIES}
    memory = fl.Run(0, range(N), STEPS, **kept)
    for i, step in enumerate(seen):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                again = fl.combine(
                    guide, step.values, x=step.x, t=step.level, run=memory, masks=MASKS
                )
            except ValueError as error:
                return None if NETWORK in str(error) else f"does not combine: {error}"
        gap = (again - step.denoise).abs().max().item()
        if gap > 1e-9:
            return f"differs from the combined branches by {gap:.1e} in step {i}"
    return None


def built(make, *methods):
    """The guide, or `None` where it is refused by one of the methods, by name, as documented."""
    try:
        return make(), None
    except ValueError as error:
        named = [m for m in methods if m.name in str(error)]
        documented = any("Raises:" in (type(m).__doc__ or "") for m in named)
        return None, None if documented else f"is refused without saying by whom: {error}"


def report(problems):
    assert not problems, "\n".join(f"{k} {v}" for k, v in problems.items())


@pytest.mark.parametrize("name", TERMS)
def test_sums(name, run, wanted):
    """`a + b` wants the branches of both, each once."""
    first, problems = TERMS[name], {}
    for other in list(TERMS)[list(TERMS).index(name) :]:
        second = TERMS[other]
        guide, wrong = built(lambda s=second: first + s, first, second)
        if guide is not None:
            both = zip(wanted(first), wanted(second), strict=True)
            wrong = problem(guide, run, [a | b for a, b in both], exact=True)
        if wrong:
            problems[f"{name} + {other}"] = wrong
    report(problems)


@pytest.mark.parametrize("name", PIPED)
def test_pipes_of_a_term(name, run, wanted):
    """A rule adds the branches that it reads; a schedule or policy adds none."""
    node, problems = PIPED[name], {}
    for other, term in TERMS.items():
        guide, wrong = built(lambda t=term: t | node, term, node)
        if guide is not None:
            wrong = problem(guide, run, bound_of(node, wanted(term)), isinstance(node, Rule))
        if wrong:
            problems[f"{other} | {name}"] = wrong
    report(problems)


@pytest.mark.parametrize("name", PIPED)
def test_pipes_of_a_pipe(name, run, wanted):
    """`cfg | a | b` and, in its own turn, `cfg | b | a`."""
    node, problems = PIPED[name], {}
    base = wanted(fl.CFG(3.0))
    for other, second in PIPED.items():
        guide, wrong = built(lambda s=second: fl.CFG(3.0) | node | s, node, second)
        if guide is not None:
            exact = isinstance(node, Rule) and isinstance(second, Rule)
            wrong = problem(guide, run, bound_of(second, bound_of(node, base)), exact)
        if wrong:
            problems[f"cfg | {name} | {other}"] = wrong
    report(problems)


def bound_of(node, left):
    """What a pipe may want, where what stands left of it wants `left`."""
    read = {COND, *getattr(node, "needs", ())}
    return [step | read for step in left]


@pytest.mark.parametrize("name", METHODS)
def test_what_stands_on_the_wrong_side_is_refused_at_once(name):
    node = METHODS[name]
    for other, second in METHODS.items():
        if other in TERMS:  # after | stands no term
            with pytest.raises(TypeError, match=r"join it with|unsupported operand"):
                node | second
        elif name in PIPED:  # left of | and on both sides of + stand guides
            with pytest.raises(TypeError, match="unsupported operand"):
                node | second
        if not (name in TERMS and other in TERMS):
            with pytest.raises(TypeError, match="unsupported operand"):
                node + second
