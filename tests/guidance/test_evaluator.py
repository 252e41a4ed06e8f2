"""The evaluator: calls, rows, dependencies, hooks, and the naming of what went wrong."""

import threading
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import Rule, Term
from fairlead.guidance.branch import COND, Branch, Point, Transform
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5, 8]}
DOUBLE = {"dtype": torch.float64}
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
MIXED = "cfg(3) + pag(2) + icg(2) + tsg(1.5) + autoguidance(2) | apg(beta=-0.5)"


def double():
    return tiny_denoiser(dtype=torch.float64)


def model(guide, denoiser, n=3, **options):
    states = {"cond": fl.Condition({"label": LABEL["label"][:n]})}
    made = GuidedModel(
        fl.guide(guide), Evaluator(denoiser, states, **options), fl.Run(0, range(n), 4)
    )
    made.begin(fl.schedules.EDM().level(1.0))
    return made


@pytest.mark.parametrize(
    "options", [{"batching": "sequential"}, *({"max_batch": m} for m in (1, 2, 3, 4, 100))], ids=str
)
def test_splitting_changes_nothing(options):
    whole = fl.sample(double(), LABEL, guide=MIXED, steps=3, **DOUBLE)
    parts = fl.sample(double(), LABEL, guide=MIXED, steps=3, **DOUBLE, **options)
    assert_close(whole.x, parts.x, **CLOSE)
    assert torch.equal(whole.nfe, parts.nfe)


def test_branches_of_one_model_are_one_call():
    for options, calls in [({}, 1), ({"batching": "sequential"}, 5), ({"max_batch": 6}, 3)]:
        d = tiny_denoiser()
        fl.sample(d, LABEL, guide=MIXED, steps=1, sampler="ddim", **options)
        assert d.network.calls == calls
        assert d.network.rows == 15
        assert d.models["weak"].network.rows == 3


def test_max_batch_bounds_the_rows_of_a_call():
    d, sizes = tiny_denoiser(), []
    d.network.register_forward_hook(lambda _, a, out: sizes.append(len(out)))
    fl.sample(d, LABEL, guide=MIXED, steps=2, max_batch=4)
    assert max(sizes) == 4
    assert sum(sizes) == 3 * 15


def test_equal_branches_are_evaluated_once():
    d = tiny_denoiser()
    out = fl.sample(d, LABEL, guide="cfg(3) + cfg(2) + pag(1) + pag(2)", steps=1, sampler="ddim")
    assert out.nfe.tolist() == [3, 3, 3]
    assert d.network.rows == 9


@pytest.mark.parametrize(
    ("guide", "cost"),
    [
        ("cfg(1)", 1),
        ("cfg(0)", 1),
        ("none", 1),
        ("cfg(1) + pag(0)", 1),
        ("cfg(1) | apg()", 1),
        ("cfg(0) | apg()", 2),
        ("cfg(3) + cfg(-1)", 1),
        ("cfg(0) + pag(2)", 3),
    ],
)
def test_zero_coefficients_are_not_evaluated(guide, cost):
    out = fl.sample(tiny_denoiser(), LABEL, guide=guide, steps=1, sampler="ddim")
    assert out.nfe.tolist() == [cost] * 3


def test_cancelled_terms_leave_the_conditional():
    out = fl.sample(double(), LABEL, guide="cfg(3) + cfg(-1)", steps=2, **DOUBLE)
    assert_close(out.x, fl.sample(double(), LABEL, steps=2, **DOUBLE).x, **CLOSE)


def test_a_rule_sees_terms_that_cancel_each_other():
    # per sample and for all: the coefficient of null is 0, but the rule acts on one term alone
    for weights in ((3.0, -1.0), ((3.0, 3.0, 2.0), (-1.0, 2.0, 1.0))):
        inside = (fl.CFG(weights[0]) | fl.APG()) + fl.CFG(weights[1])
        apart = (fl.CFG(weights[0]) | fl.APG()) + fl.ICG(weights[1])
        d = double()
        d.null, d.choices = {"label": 0}, {"label": 1}  # icg draws the null
        d.check = lambda condition: None
        outs = [fl.sample(d, LABEL, guide=g, steps=2, **DOUBLE).x for g in (inside, apart)]
        assert_close(*outs, **CLOSE)


def test_scale_zero_is_the_null_to_the_bit():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(0)", steps=3)
    assert torch.equal(out.x, fl.sample(tiny_denoiser(), {"label": [10] * 3}, steps=3).x)


def test_rows_without_weight_are_skipped():
    d = tiny_denoiser()
    out = fl.sample(d, LABEL, guide="cfg([1, 3, 1])", steps=1, sampler="ddim")
    assert out.nfe.tolist() == [1, 2, 1]
    assert d.network.rows == 4
    options = {"guide": "cfg(3)", "steps": 1, "sampler": "ddim"}
    alone = fl.sample(tiny_denoiser(), {"label": [5]}, first=1, **options)
    assert_close(out.x[1:2], alone.x, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Towards(Point):
    """Halfway between x and the base's clean estimate."""

    def __call__(self, x, predictions, ctx):
        return (x + predictions["cond"]) / 2


@dataclass(frozen=True)
class Other(Transform):
    def __call__(self, condition, denoiser, ctx):
        return fl.Condition({"label": (condition["label"] + 1) % 10})


FIRST = Branch("first", transforms=(Other(),), needs=(COND,), point=Towards())
SECOND = Branch("second", needs=(FIRST,), point=Towards())


@dataclass(frozen=True)
class Moved(Term):
    strength = 1.5
    negative = SECOND


@dataclass(frozen=True)
class Looks(Rule):
    needs = (FIRST,)

    def apply(self, update, predictions, ctx):
        return predictions["first"] - predictions.base


@pytest.mark.parametrize("options", [{}, {"batching": "sequential"}, {"max_batch": 2}], ids=str)
def test_branches_wait_for_what_they_need(options):
    d = double()
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = d.schedule.level(1.0)
    out = model(Moved() + fl.CFG(2.0), d, **options)(x, level)
    c = d(x, level, LABEL)
    moved = d((x + c) / 2, level, LABEL)
    u = d(x, level, {"label": [10] * 3})
    assert_close(out.denoise, c + 1.5 * (c - moved) + (c - u), **CLOSE)


def test_a_rule_gets_the_branches_that_it_needs():
    d = double()
    x, level = torch.ones(3, 2, 8, 8, dtype=torch.float64), d.schedule.level(1.0)
    out = model(fl.CFG(2.0) | Looks(), d)(x, level)
    c = d(x, level, LABEL)
    first = d((x + c) / 2, level, {"label": [4, 6, 9]})
    assert_close(out.denoise, first, **CLOSE)


def test_need_of_a_need_is_evaluated():
    # `first` is asked for by nobody but `second`
    d = double()
    made = model(Moved(), d)
    made(torch.ones(3, 2, 8, 8, dtype=torch.float64), d.schedule.level(1.0))
    assert {b.name for b in made.run.report.entries[0].wanted} == {"cond", "first", "second"}


@pytest.mark.parametrize(("row", "name"), [(0, "cond"), (4, "null"), (8, "pag")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("guide", ["cfg(3) + pag(2)", "cfg(3) + pag(2) | rescale(0.7)"])
def test_bad_prediction_is_named_with_branch_and_step(row, name, value, guide):
    for record in (True, False):
        d = tiny_denoiser()

        def poison(call, out):
            if call == 2:
                out[row, 0, 0, 0] = value
            return out

        d.network.tamper = poison
        with pytest.raises(
            FloatingPointError, match=rf"branch '{name}' is NaN or infinite at step 2 .*check=False"
        ):
            fl.sample(d, LABEL, guide=guide, steps=4, sampler="ddim", record=record)


def test_opposite_infinities_do_not_hide():
    d = tiny_denoiser()

    def poison(call, out):
        out[0, 0, 0, 0], out[1, 0, 0, 0] = float("inf"), -float("inf")
        return out

    d.network.tamper = poison
    with pytest.raises(FloatingPointError, match="branch 'cond'"):
        fl.sample(d, LABEL, steps=2, sampler="ddim")


def test_untrained_state_warns_once_by_name():
    d = tiny_denoiser()
    d.trained = frozenset({"cond"})
    with pytest.warns(UserWarning, match="not trained on the condition state 'null'") as caught:
        fl.sample(d, LABEL, guide="cfg(3)", steps=3)
    assert len(caught) == 1


def test_model_without_null_says_who_does_without():
    d = tiny_denoiser()
    d.null = {}
    with pytest.raises(ValueError, match=r"no null for 'label'.*icg, tsg, pag, autoguidance"):
        fl.sample(d, LABEL, guide="cfg(3)", steps=2)
    assert d.network.calls == 0
    fl.sample(d, LABEL, guide="icg(3) + pag(1)", steps=2)


def test_null_of_no_condition_is_refused():
    net = torch.nn.Identity()
    d = fl.Denoiser(lambda x, t: net(x), fl.schedules.EDM(), "sample", shape=(2,))
    with pytest.raises(ValueError, match="the model was given no condition"):
        fl.sample(d, guide="cfg(3)", n=2, steps=2)


def test_one_guide_drives_two_threads():
    guide, results = fl.guide("cfg(3) + pag(2) | apg(beta=-0.5)"), {}
    d = double()

    def work(seed):
        results[seed] = fl.sample(d, LABEL, guide=guide, steps=3, seed=seed, **DOUBLE).x

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        alone = fl.sample(double(), LABEL, guide=guide, steps=3, seed=seed, **DOUBLE).x
        assert torch.equal(results[seed], alone)
