"""The algebra: operators, flattening, merging, memory by place, domains, descriptions."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import (
    REGISTRY,
    Pipe,
    Rule,
    Sum,
    inner,
    norm,
    opposed,
    project,
    register,
)
from fairlead.testing import combine, pairs, tiny_denoiser

a, b, c = fl.CFG(2.0), fl.PAG(1.0), fl.ICG(3.0)


def test_precedence_and_flattening():
    guide = a + b | fl.Rescale(0.7) | fl.Interval(0.1, 0.8)
    assert guide == Pipe(Pipe(Sum((a, b)), fl.Rescale(0.7)), fl.Interval(0.1, 0.8))
    assert a + (b + c) == (a + b) + c == Sum((a, b, c))
    assert (a | fl.APG()) + b == Sum((Pipe(a, fl.APG()), b))


def test_no_guidance_is_the_neutral_element():
    none = fl.guide("none")
    assert none == Sum(())
    assert none + a == a + none == a
    assert str(none) == "none"


def test_values_are_hashable_and_frozen():
    assert len({fl.CFG(2.0), fl.CFG(2), fl.guide("cfg(2)")}) == 1
    assert fl.CFG([1, 2]) == fl.CFG(torch.tensor([1.0, 2.0])) == fl.CFG((1.0, 2.0))
    with pytest.raises(AttributeError):
        a.w = 3.0
    with pytest.raises(ValueError, match=r"one a sample, got shape \(2, 2\)"):
        fl.CFG(torch.ones(2, 2))


def test_operators_refuse_what_does_not_fit():
    with pytest.raises(TypeError, match="adds a direction: join it with"):
        a | b
    with pytest.raises(TypeError):
        a + fl.APG()
    with pytest.raises(TypeError):
        a + 3


@given(pairs(), st.floats(-2, 9), st.floats(-2, 9))
def test_equal_terms_merge(cu, v, w):
    both = combine(fl.CFG(v) + fl.CFG(w), *cu)
    assert_close(both, combine(fl.CFG(v + w - 1), *cu), rtol=0, atol=1e-11)


@given(pairs(), st.floats(1, 9), st.floats(-1, 2))
def test_a_rule_acts_on_what_stands_left_of_it(cu, w, eta):
    (one, two), rule = cu, fl.APG(eta=eta)
    inside = fl.combine((fl.CFG(w) | rule) + fl.PAG(2.0), {"cond": one, "null": two, "pag": -one})
    assert_close(inside, combine(fl.CFG(w) | rule, one, two) + 2 * (one + one), rtol=0, atol=1e-9)


def test_weight_below_a_rule_is_the_total_of_the_terms():
    c, u, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, -3.0]]), torch.tensor([[1.0, 4.0]])
    # update 2 (0, 3) + 1 (0, -4) = (0, 2), W = 3: delta has length 2/3, capped at 1/3
    guide = fl.CFG(3.0) + fl.PAG(1.0) | fl.APG(eta=1.0, r=1 / 3)
    out = fl.combine(guide, {"cond": c, "null": u, "pag": p})
    assert_close(out, torch.tensor([[1.0, 1.0]]))


@dataclass(frozen=True)
class Opposed(Rule):
    """Adds nothing; keeps what it is told of the terms below."""

    def apply(self, update, predictions, ctx):
        ctx.remember(opposed(predictions.base, update, ctx))
        return update


def test_what_the_terms_below_push_away_from():
    cond, null, other = (torch.tensor([[v, 1.0]]) for v in (1.0, 2.0, 4.0))

    def seen(guide):
        run = fl.Run()
        values = {"cond": cond, "null": null, "other": other}
        fl.combine(guide, values, run=run)
        run.advance()
        places = [(), (0,)]
        return next(v for v in (run.recall((p, ""), None) for p in places) if v)

    for w in (3.0, 0.5, -1.0):
        negative, weight = seen(fl.CFG(w) | Opposed())
        assert weight == w - 1
        assert_close(negative, null)
    both = fl.CFG(2.0) + fl.CFG(3.0, against="other")
    negative, weight = seen(both | Opposed())
    assert weight == 3.0
    assert_close(negative, (null + 2 * other) / 3)
    # a term beside the rule is none of its business
    negative, weight = seen((fl.CFG(3.0, against="other") | Opposed()) + fl.CFG(2.0))
    assert weight == 2.0
    assert_close(negative, other)
    negative, weight = seen(fl.CFG(0.0) + fl.CFG(2.0, against="other") | Opposed())
    assert weight == 0.0
    assert_close(negative, cond - ((null - cond) + (cond - other)))


def test_rules_leave_samples_alone_whose_terms_are_off():
    run, guide = fl.Run(), fl.CFG((2.0, 2.0)) | fl.APG(beta=0.5)
    cond, null = torch.eye(2), torch.ones(2, 2)
    combine(guide, cond, null, run)  # leaves momentum
    out = combine(fl.CFG((1.0, 2.0)) | fl.APG(beta=0.5), cond, null, run)
    assert torch.equal(out[0], cond[0])
    assert not torch.equal(out[1], cond[1])


def test_equal_rules_have_a_memory_each():
    c, u = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    guide, run = fl.CFG(2.0) | fl.APG(eta=1, beta=0.5) | fl.APG(eta=1, beta=0.5), fl.Run()
    outs = [combine(guide, c, u, run).item() - 1 for _ in range(3)]
    # m1 = 1, 3/2, 7/4; m2 adds half of its own past: 1, 2, 11/4
    assert outs == pytest.approx([1.0, 2.0, 2.75])


def test_memory_counts_once_a_step():
    run = fl.Run()
    run.advance()
    run.remember("slot", 1)
    run.remember("slot", 2)
    assert run.recall("slot", 0) == 0  # as the last step left it
    run.advance()
    assert run.recall("slot", 0) == 1
    run.remember("slot", 3)
    assert run.recall("slot", 0) == 1
    run.advance()
    assert run.recall("slot", 0) == 3


def test_noise_is_fixed_by_seed_sample_step_and_key():
    like = torch.empty(4, 3)
    run = fl.Run(1, range(4))
    assert torch.equal(run.normal(like, "a"), fl.Run(1, range(4)).normal(like, "a"))
    assert torch.equal(run.normal(like, "a")[2:], fl.Run(1, [2, 3]).normal(like[:2], "a"))
    assert torch.equal(run.normal(like[:2], "a", rows=[1, 3]), run.normal(like, "a")[[1, 3]])
    seeded = fl.Run(2, range(4)).normal(like, "a")
    others = [run.normal(like, "b"), run.normal(like, "a", 1), seeded]
    assert not any(torch.equal(run.normal(like, "a"), other) for other in others)
    assert torch.equal(run.normal(like.double(), "a").float(), run.normal(like, "a"))


def test_schedules_multiply():
    guide = fl.CFG(3.0) | fl.Curve("linear") | fl.Interval(0.5, 1.0)
    c, u = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    run = fl.Run(steps=5)
    outs = [combine(guide, c, u, run).item() for _ in range(5)]
    assert outs == pytest.approx([1, 1, 1, 1 + 2 * 1.5, 1 + 2 * 2])


def test_domains_and_their_error():
    tokens = {"logprob", "posterior", "rates", "simplex"}
    assert fl.CFG(2.0).domains == {"continuous"} | tokens
    assert (fl.CFG(2.0) | fl.APG()).domains == {"continuous"}
    values = {"cond": torch.zeros(1, 3), "null": torch.zeros(1, 3)}
    with pytest.raises(ValueError, match="apg: does not serve the domain 'logprob'"):
        fl.combine("cfg(2) | apg()", values, domain="logprob")


def test_registry_refuses_a_name_twice():
    with pytest.raises(ValueError, match="register: 'cfg' is taken by CFG"):
        register("cfg")(fl.APG)
    assert REGISTRY["cfg"] is fl.CFG


def test_description_lists_branches_rules_and_cost():
    guide = fl.guide("cfg(4) + pag(3) + cfg(2) | rescale(0.7)")
    d = guide.describe()
    assert d.coefficients == {"cond": 8.0, "null": -4.0, "pag": -3.0}
    assert sum(d.coefficients.values()) == 1
    assert d.nfe == 3
    assert ("rule", "rescale(0.7)") in d.parts
    assert fl.guide("cfg(1) + pag(0)").describe().nfe == 1
    assert fl.guide("cfgpp(1)").describe().nfe == 2
    assert fl.CFG([1.0, 3.0]).describe().coefficients == {"cond": [1.0, 3.0], "null": [0.0, -2.0]}


def test_description_of_a_run_has_the_norm_of_each_term():
    out = fl.sample(tiny_denoiser(), {"label": [1]}, guide="cfg(3) + pag(2)", steps=2)
    text = str(out.describe())
    assert "|cfg(3.0)|" in text
    assert "network calls: 3" in text
    norms = [e["norms"] for e in out.describe().to_dict()["run"]]
    assert all(n["cfg(3.0)"] > 0 and n["pag(2.0)"] > 0 for n in norms)


@given(pairs())
def test_projection_splits_orthogonally(xy):
    x, y = xy
    part = project(x, onto=y)
    bound = 1e-12 * (norm(x) * norm(y)).clamp(min=1)
    assert (inner(x - part, y).abs() <= bound).all()
    assert_close(project(part, onto=y), part, rtol=1e-9, atol=1e-12)
    assert torch.equal(project(x, onto=0 * y), 0 * y)


@dataclass(frozen=True)
class Halve(Rule):
    def apply(self, update, predictions, ctx):
        assert torch.equal(predictions["cond"], predictions.base)
        with pytest.raises(KeyError, match="no branch 'nul'; did you mean 'null'"):
            predictions["nul"]
        return update / 2


def test_a_rule_sees_branches_by_name():
    out = combine(fl.CFG(3.0) | Halve(), torch.ones(1, 1), torch.zeros(1, 1))
    assert out.item() == 2.0
