"""The checks, one function a promise; each is given a `Subject` and raises if it is broken."""

import copy
import math
import pickle
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.energy import Boxes, Classifier, Energy, Linear, Symmetry
from fairlead.guidance.algebra import Guide, Rule, Term
from fairlead.guidance.branch import Branch, Predictions, Transform
from fairlead.guidance.combine import combine
from fairlead.guidance.context import Context, Plan, Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel, branches
from fairlead.guidance.masks import fitted
from fairlead.guidance.spec import guide as parse
from fairlead.guidance.terms.cfg import CFG
from fairlead.parameters import Range, ranges
from fairlead.sampling import Interrupted, Result, sample
from fairlead.schedules import EDM
from fairlead.testing.networks import TinyNetwork
from fairlead.testing.subject import NotApplicable, Subject

Check = Callable[[Subject], None]

CHECKS: dict[str, Check] = {}
"""Every check by name."""

LABELS = [3, 5, 8]
MASKS = {"left": (torch.arange(8) < 4).reshape(1, 1, 8)}

ENERGIES: dict[str, Energy] = {
    "measurement": Linear(lambda z: z.flatten(2).mean(2), [0.3, -0.2], noise=0.5),
    "classifier": Classifier(lambda z: z.flatten(1)[:, :120].reshape(-1, 10, 12).sum(2), label=1),
    "symmetry": Symmetry(),
    "boxes": Boxes({1: (0.0, 0.0, 0.5, 1.0), (2, 3): (0.5, 0.25, 1.0, 1.0)}),
}
"""Energies that guides find here by name."""

STEPS = 3


def check(function: Check) -> Check:
    """Enters a check under its name."""
    CHECKS[function.__name__] = function
    return function


def draw(
    guide: Guide,
    denoiser: Denoiser,
    *,
    n: int = 3,
    first: int = 0,
    **options: Any,
) -> Result:
    """Samples under a guide, labels fixed by the index of the sample."""
    options = {"sampler": "heun", "steps": STEPS, "record": False, "energies": ENERGIES, **options}
    cond = given(guide, n, first)
    states = {"negative": {**cond, "label": [(i + 1) % 10 for i in cond["label"]]}}
    options = {"states": states, "masks": MASKS, **options}
    return sample(denoiser, cond, guide=guide, first=first, n=n, **options)


def given(guide: Guide, n: int, first: int = 0) -> dict[str, list[int]]:
    """Conditions of the tiny network: a label, and a style for guides that name it."""
    named = {name for node in guide.nodes() for name in getattr(node, "conditions", ())}
    cond = {"label": LABELS[first : first + n]}
    return {**cond, "style": [i % 3 + 1 for i in cond["label"]]} if "style" in named else cond


def networks(denoiser: Denoiser) -> list[TinyNetwork]:
    """The network and the weak one."""
    found = [denoiser, *denoiser.models.values()]
    return [typing.cast(TinyNetwork, d.network) for d in found]


def model_of(guide: Guide, run: Run, denoiser: Denoiser, n: int = 2) -> GuidedModel:
    """A guided model to be driven by hand."""
    run.masks = fitted(MASKS, torch.empty(n, 2, 8, 8))
    cond = Condition(given(guide, n))
    states = {"cond": cond, "negative": cond.replace(label=[i + 1 for i in LABELS[:n]])}
    run.energies = {**ENERGIES, **run.energies}
    return GuidedModel(guide, Evaluator(denoiser, states), run)


def noise(n: int = 2, key: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Reproducible noise of the tiny network's shape."""
    generator = torch.Generator().manual_seed(key)
    return torch.randn(n, 2, 8, 8, generator=generator, dtype=torch.float64).to(dtype)


def error_of(kinds: tuple[type[BaseException], ...], function: Callable[[], object]) -> str:
    """The message of the error, of one of the kinds, that the function has to raise."""
    message = None
    try:
        function()
    except kinds as error:
        message = str(error)
    expected = " or ".join(k.__name__ for k in kinds)
    assert message is not None, f"expected {expected}; nothing was raised"
    return message


@check
def shape_dtype_device(subject: Subject) -> None:
    """Samples look like what was asked for, and are finite."""
    for dtype in (torch.float32, torch.float64):
        out = draw(subject.guide, subject.tiny(), dtype=dtype).x
        assert out.shape == (3, 2, 8, 8), f"shape {tuple(out.shape)}"
        assert out.dtype == dtype, f"dtype {out.dtype} instead of {dtype}"
        assert out.device.type == "cpu", f"device {out.device}"
        assert bool(out.isfinite().all()), "not finite"


@check
def low_precision(subject: Subject) -> None:
    """Input in bf16 is combined in float32: as if it had been float32 from the start."""
    x, level = noise().bfloat16(), EDM().level(1.0)
    both = []
    for given in (x, x.float()):
        model = model_of(subject.guide, Run(0, range(2), STEPS), subject.tiny())
        model.begin(level)
        both.append(model(given, level).denoise)
    assert both[0].dtype == torch.float32, f"dtype {both[0].dtype} instead of float32"
    assert torch.equal(*both), "bf16 input changes more than the input's precision"


@check
def neutral(subject: Subject) -> None:
    """The neutral setting changes nothing, to the bit."""
    arguments = type(subject.method).neutral
    if arguments is None:
        raise NotApplicable("the method has no neutral setting")
    guide = subject.framed(f"{subject.method.name}({arguments})")
    for sampler in ("heun", "ddim"):
        found = [draw(g, subject.tiny(), sampler=sampler).x for g in (guide, subject.plain)]
        same = torch.equal(*found)
        assert same, f"{guide} differs from {subject.plain} under {sampler}"


@check
def strength_zero(subject: Subject) -> None:
    """At strength 0 (`w = 1`) it is the conditional model to the bit, at one evaluation."""
    method = subject.method
    if not isinstance(method, Term):
        guide: Guide = CFG(1.0) | method  # type: ignore[operator]
    elif type(method).neutral is None:
        raise NotApplicable("the term has no strength 0")
    else:
        guide = parse(f"{method.name}({type(method).neutral})")
    denoiser = subject.tiny()
    out, plain = draw(guide, denoiser), draw(parse("none"), subject.tiny())
    assert torch.equal(out.x, plain.x), "differs from the conditional model"
    assert torch.equal(out.nfe, plain.nfe), f"nfe {out.nfe.tolist()}, not {plain.nfe.tolist()}"
    assert sum(n.rows for n in networks(denoiser)) == int(plain.nfe.sum()), "rows are wasted"


@check
def nfe(subject: Subject) -> None:
    """The reported cost is what the networks saw, and no more than what the method declares."""
    denoiser = subject.tiny()
    evaluations = 2 * STEPS - 1
    out = draw(subject.guide, denoiser)
    seen = sum(n.rows for n in networks(denoiser))
    assert int(out.nfe.sum()) == seen, f"reported {out.nfe.tolist()}, the networks saw {seen} rows"
    if subject.node is None:
        return
    declared = (1 if isinstance(subject.node, Term) else 2) + type(subject.node).nfe
    spent = out.nfe.max().item() / evaluations
    if isinstance(subject.node, (Term, Rule)) and not getattr(subject.node, "decay", 0):
        assert spent == declared, f"declares {declared} evaluations, spends {spent}"
    assert spent <= declared, f"declares at most {declared} evaluations, spends {spent}"


@dataclass(frozen=True)
class _NextLabel(Transform):
    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: Context) -> Condition:
        label = condition["label"]
        return condition if label.is_floating_point() else condition.replace(label=(label + 1) % 10)


@dataclass(frozen=True)
class _Probe(Term):
    """A term with a branch that no other method has."""

    name: ClassVar[str] = "probe"
    strength: ClassVar[float] = 0.5
    negative: ClassVar[Branch] = Branch("probe", transforms=(_NextLabel(),))


@check
def branch_sharing(subject: Subject) -> None:
    """Another term beside it costs its own branch alone: the conditional one is shared."""
    evaluations = 2 * STEPS - 1
    guides = (subject.guide, subject.beside(_Probe()))
    alone, beside = (draw(guide, subject.tiny()).nfe for guide in guides)
    assert (beside - alone).tolist() == [evaluations] * 3, (
        f"{(beside - alone).tolist()} further evaluations instead of {evaluations}"
    )


@check
def batches(subject: Subject) -> None:
    """A batch of n is n batches of one, with the same noise.

    In float64; batched and single matrix products differ in the last bits.
    """
    together = draw(subject.guide, subject.tiny(torch.float64), dtype=torch.float64)
    single = [
        draw(subject.guide, subject.tiny(torch.float64), n=1, first=i, dtype=torch.float64)
        for i in range(3)
    ]
    torch.testing.assert_close(together.x, torch.cat([s.x for s in single]), rtol=1e-9, atol=1e-9)
    assert torch.equal(together.nfe, torch.cat([s.nfe for s in single])), "nfe differs"


@check
def max_batch(subject: Subject) -> None:
    """Splitting the network's calls, or one call a branch, changes nothing."""
    whole = draw(subject.guide, subject.tiny(torch.float64), dtype=torch.float64)
    for options in ({"batching": "sequential"}, {"max_batch": 2}):
        parts = draw(subject.guide, subject.tiny(torch.float64), dtype=torch.float64, **options)
        torch.testing.assert_close(whole.x, parts.x, rtol=1e-9, atol=1e-9)
        assert torch.equal(whole.nfe, parts.nfe), f"nfe differs under {options}"


@check
def deterministic(subject: Subject) -> None:
    """The seed decides alone; the global random state is neither read nor moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = draw(subject.guide, subject.tiny(), seed=7).x
        assert torch.equal(before, torch.get_rng_state()), "moves the global random state"
        torch.manual_seed(2)
        assert torch.equal(first, draw(subject.guide, subject.tiny(), seed=7).x), "two runs differ"
    assert not torch.equal(first, draw(subject.guide, subject.tiny(), seed=8).x), (
        "the seed has no effect"
    )


def _hooks(denoiser: Denoiser) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [m for n in networks(denoiser) for m in n.modules()]
    return sum(len(getattr(m, kind)) for m in modules for kind in kinds)


@check
def no_traces(subject: Subject) -> None:
    """A run leaves nothing in guide and network, also after an error and an interrupt."""
    guide, denoiser = subject.guide, subject.tiny()
    twin = copy.deepcopy(guide)
    reference = draw(guide, denoiser).x
    kept = copy.deepcopy([vars(n) for n in guide.nodes()])

    for kind, seen in ((RuntimeError, RuntimeError), (KeyboardInterrupt, Interrupted)):

        def fail(call: int, out: Tensor, kind: type[BaseException] = kind) -> Tensor:
            if call >= 3:
                raise kind("on purpose")
            return out

        for network in networks(denoiser):
            network.calls, network.tamper = 0, fail
        error_of((seen,), lambda: draw(guide, denoiser))
        for network in networks(denoiser):
            network.tamper = None
        assert _hooks(denoiser) == 0, f"hooks are left after {kind.__name__}"
        assert torch.equal(draw(guide, denoiser).x, reference), f"differs after {kind.__name__}"
    draw(guide, denoiser, seed=1)  # another run, so that what it leaves would differ
    assert _hooks(denoiser) == 0, "hooks are left after success"
    assert guide == twin, "the guide has changed"
    assert hash(guide) == hash(twin), "the guide's hash has changed"
    assert [vars(n) for n in guide.nodes()] == kept, "a run leaves something in the guide"


@check
def text(subject: Subject) -> None:
    """The guide survives its text form and pickle."""
    guide = subject.guide
    assert parse(str(guide)) == guide, f"{guide} is read as {parse(str(guide))}"
    assert pickle.loads(pickle.dumps(guide)) == guide, "pickle changes it"
    assert repr(guide) == repr(parse(str(guide))), "the repr changes through text"


@check
def two_memories(subject: Subject) -> None:
    """Twice the same rule is two rules, each with a memory of its own."""
    rule = subject.method
    if not isinstance(rule, Rule):
        raise NotApplicable("no rule")
    options: dict[str, Any] = {"check": False, "record": False, "energies": ENERGIES}
    both, outer, inner = (Run(0, range(2), STEPS, **options) for _ in range(3))
    once = CFG(3.0) | rule
    for i in range(3):
        c, u = noise(key=i, dtype=torch.float64), noise(key=i + 10, dtype=torch.float64)
        place: dict[str, Any] = {
            "x": noise(key=20, dtype=torch.float64),
            "t": 2.0,
            "schedule": EDM(),
        }
        twice = combine(once | rule, {"cond": c, "null": u}, run=both, **place)
        between = combine(once, {"cond": c, "null": u}, run=inner, **place)
        # the update of the first rule as that of plain CFG: D_c + 2 (D_c - null')
        null = c - (between - c) / 2
        apart = combine(once, {"cond": c, "null": null}, run=outer, **place)
        torch.testing.assert_close(twice, apart, rtol=1e-9, atol=1e-9)


@check
def memory_once_a_step(subject: Subject) -> None:
    """Later stages of a step change nothing in what is remembered."""
    results = []
    for stages in (1, 3):
        model = model_of(subject.guide, Run(0, range(2), STEPS), subject.tiny())
        firsts = []
        for step in range(3):
            level = EDM().level(5.0 - step)
            model.begin(level)
            firsts.append(model(noise(key=step), level).denoise)
            for stage in range(1, stages):
                model(noise(key=100 * stage + step), EDM().level(4.5 - step))
        results.append(torch.stack(firsts))
    assert torch.equal(*results), "a second stage changes the next step"


@check
def compile(subject: Subject) -> None:
    """The arithmetic of the combine is one graph for `torch.compile`."""
    if any(getattr(node, "gradient", False) for node in subject.guide.nodes()):
        raise NotApplicable("it differentiates an energy in the combine")
    masks = fitted(MASKS, noise())
    run = Run(0, range(2), STEPS, check=False, record=False, masks=masks)
    run.advance()
    guide, level = subject.guide, EDM().level(2.0)
    ctx = Context(noise(), level, run, subject.tiny())
    ctx.plan = Plan(guide.base(ctx))
    guide.plan(ctx, (), 1.0, ())
    wanted = list({ctx.plan.base: None, **dict.fromkeys(ctx.plan.coefficients)})

    def arithmetic(values: list[Tensor]) -> Tensor:
        predictions = Predictions(ctx.plan.base, dict(zip(wanted, values, strict=True)))
        update, _ = guide.update(predictions, ctx, ())
        return predictions.base if update is None else predictions.base + update

    given = [noise(key=i) for i in range(len(wanted))]
    plain = arithmetic(given)
    torch.compiler.reset()
    compiled = torch.compile(arithmetic, fullgraph=True, backend="eager")
    assert torch.equal(compiled(given), plain), "compiling changes the result"


@check
def bad_values(subject: Subject) -> None:
    """A value out of its range raises a `ValueError` that names the parameter."""
    method = subject.method
    cls: Any = type(method)
    allowed = ranges(cls)
    for f in fields(method):
        if f.name not in allowed:
            continue
        for value in outside(allowed[f.name]):
            message = error_of((ValueError,), partial(replace, method, **{f.name: value}))
            assert message.startswith(f"{method.name}: {f.name} "), f"unclear: {message}"
        message = error_of((TypeError,), partial(replace, method, **{f.name: "much"}))
        assert message.startswith(f"{method.name}: {f.name} "), f"unclear: {message}"


def outside(allowed: Range) -> list[float]:
    """Values that do not lie in a range."""
    tried = [allowed.low, allowed.high, allowed.low - 1, allowed.high + 1]
    return [math.nan, *(v for v in (*tried, math.inf, -math.inf) if v not in allowed)]


@check
def not_finite(subject: Subject) -> None:
    """NaN and infinity in a prediction are refused, naming branch and step, unless asked not."""
    names = {b.name for b in branches(subject.guide)}
    clean = subject.tiny()
    draw(subject.guide, clean, sampler="ddim")
    first = networks(clean)[0].calls // STEPS  # the first call of step 1
    for value in (math.nan, math.inf):
        denoiser = subject.tiny()

        def poison(call: int, out: Tensor, value: float = value) -> Tensor:
            out = out.clone()
            if call >= first:
                out[-1, 0, 0, 0] = value
            return out

        networks(denoiser)[0].tamper = poison
        message = error_of(
            (FloatingPointError,), partial(draw, subject.guide, denoiser, sampler="ddim")
        )
        assert any(f"branch {n!r}" in message for n in names), f"no branch named: {message}"
        assert "step 1" in message, f"wrong step: {message}"
        assert "check=False" in message, f"no way out: {message}"
        draw(subject.guide, denoiser, sampler="ddim", check=False)


@check
def weights_per_sample(subject: Subject) -> None:
    """A scale per sample equals a loop over the samples, in cost too."""
    weights = (1.0, 2.0, 3.5)
    together = draw(subject.scaled(weights), subject.tiny(torch.float64), dtype=torch.float64)
    single = [
        draw(subject.scaled(w), subject.tiny(torch.float64), n=1, first=i, dtype=torch.float64)
        for i, w in enumerate(weights)
    ]
    torch.testing.assert_close(together.x, torch.cat([s.x for s in single]), rtol=1e-9, atol=1e-9)
    if isinstance(subject.method, Rule):
        return  # a rule may look at a branch of all samples, though one of them is off
    assert torch.equal(together.nfe, torch.cat([s.nfe for s in single])), "nfe differs"
