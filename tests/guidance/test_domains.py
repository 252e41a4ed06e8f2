"""Domains over a vocabulary: values by hand, what is normalised and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.domains import FLOOR, normalised, project

C, U = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.25, 0.75]]).double()


def both(c=C, u=U):
    return {"cond": c, "null": u}


def logs(c=C, u=U):
    return {"cond": c.log(), "null": u.log()}


@pytest.mark.parametrize("domain", ["logprob", "posterior"])
def test_logs_temper(domain):
    out = fl.combine("cfg(2)", logs(), domain=domain).exp()
    assert_close(out, torch.tensor([[3 / 4, 1 / 4]]).double())  # 1 : 1/3
    raw = fl.combine("cfg(2)", logs(), domain=domain, normalise="none").exp()
    assert_close(raw, torch.tensor([[1.0, 1 / 3]]).double())


def test_rates_stay_raw_unless_columns_are_kept():
    out = fl.combine("cfg(2)", both(4 * C, 4 * U), domain="rates")
    assert_close(out, torch.tensor([[4.0, 4 / 3]]).double())
    kept = fl.combine("cfg(2)", both(4 * C, 4 * U), domain="rates", normalise="column")
    assert_close(kept, torch.tensor([[3.0, 1.0]]).double())


def test_simplex_is_linear_and_projected():
    out = fl.combine("cfg(4)", both(), domain="simplex", normalise="none")
    assert_close(out, torch.tensor([[1.25, -0.25]]).double())
    assert_close(fl.combine("cfg(4)", both(), domain="simplex"), torch.tensor([[1.0, 0]]).double())


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=6), st.floats(-2, 2))
def test_projection_is_the_nearest_point(values, shift):
    v = torch.tensor(values, dtype=torch.float64)
    p = project(v)
    assert_close(p.sum(), torch.tensor(1.0).double())
    assert (p >= 0).all()
    # optimality: v - p is constant where p > 0 and no larger elsewhere
    slack = v - p
    top = slack[p > 0]
    assert (top.max() - top.min()) < 1e-9
    assert (slack[p == 0] <= top.max() + 1e-9).all()
    assert_close(project(v + shift), p, rtol=0, atol=1e-6)  # what is on the simplex stays put


def test_what_neither_allows_stays_forbidden_and_no_nan():
    c = torch.tensor([[0.5, 0.5, 0.0]]).double()
    u = torch.tensor([[0.75, 0.25, 0.0]]).double()
    out = fl.combine("cfg(3)", logs(c, u), domain="logprob").exp()
    assert out[0, 2] == 0
    assert_close(out.sum(), torch.tensor(1.0).double())


def test_a_row_without_probability_is_named():
    c = torch.tensor([[[0.0, 0.0], [0.5, 0.5]]]).log()
    with pytest.raises(ValueError, match="of sample 0, position 0 add up to 0"):
        fl.combine("cfg(2)", {"cond": c, "null": c}, domain="logprob")
    with pytest.raises(ValueError, match="the only row add up to 0"):
        normalised(torch.full((3,), FLOOR))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="'null' must hold no negative rates, got -3"):
        fl.combine("cfg(2)", both(C, -4 * U), domain="rates")
    with pytest.raises(ValueError, match="normalise must be one of softmax, none, got 'column'"):
        fl.combine("cfg(2)", logs(), domain="logprob", normalise="column")


def test_weights_per_sample():
    out = fl.combine(fl.CFG([1.0, 2.0]), logs(C.repeat(2, 1), U.repeat(2, 1)), domain="logprob")
    assert_close(out.exp(), torch.tensor([[0.5, 0.5], [0.75, 0.25]]).double())


def test_uniform_numbers_belong_to_their_sample():
    run, like = fl.Run(3, range(4)), torch.empty(4, 5)
    drawn = run.rand(like, "a")
    assert torch.equal(drawn[2:], fl.Run(3, [2, 3]).rand(like[:2], "a"))
    assert ((drawn > 0) & (drawn < 1)).all()
    assert not torch.equal(drawn, run.rand(like, "a", 1))
