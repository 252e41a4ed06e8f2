"""Renorm: by hand, the exact identities, and the formula of model pipelines."""

from math import inf

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import norm
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import combine, pairs

scales = st.floats(-2, 20)
C, U = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]])  # cfg(4): (12, 4); cfg(0.5): (1.5, 4)


def renorm(k=1.0, dim=None, grow=False):
    return fl.Renorm(k, dim, grow, space="sample")


def test_by_hand():
    c, u = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 4.0]])
    y = torch.tensor([[9.0, 4.0]])  # w = 4; lengths 5 and sqrt 97
    assert_close(combine(fl.CFG(4.0) | renorm(), c, u), y * 5 / 97**0.5)
    assert_close(combine(fl.CFG(4.0) | renorm(1.5), c, u), y * 7.5 / 97**0.5)
    assert_close(combine(fl.CFG(4.0) | renorm(2.0), c, u), y)


def test_shorter_prediction_grows_only_if_asked():
    y = torch.tensor([[1.5, 4.0]])
    assert_close(combine(fl.CFG(0.5) | renorm(), C, U), y)
    assert_close(combine(fl.CFG(0.5) | renorm(grow=True), C, U), y * 5 / norm(y))


def test_tokens_by_hand():
    c = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # channels first; tokens (1, 0) and (0, 2)
    u = torch.tensor([[[0.0, 0.0], [0.0, -2.0]]])  # cfg(3): (3, 0) and (0, 10)
    assert_close(combine(fl.CFG(3.0) | renorm(dim=1), c, u), c)
    # the last dimension holds (3, 0) and (0, 10) again, by symmetry
    assert_close(combine(fl.CFG(3.0) | renorm(dim=-1), c, u), c)
    whole = torch.tensor([[[3.0, 0.0], [0.0, 10.0]]]) * (5 / 109) ** 0.5
    assert_close(combine(fl.CFG(3.0) | renorm(), c, u), whole)


@given(pairs(), scales, st.floats(1, 3))
def test_scale_one_is_conditional_and_no_limit_is_cfg_to_the_bit(cu, w, k):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    assert torch.equal(combine(fl.CFG(1.0) | fl.Renorm(k), *cu), cu[0])
    assert torch.equal(combine(fl.CFG(w) | fl.Renorm(inf), *cu), combine(fl.CFG(w), *cu))


@given(pairs(size=6), scales)
def test_tokens_have_the_conditional_length(cu, w):
    c, u = (v.reshape(2, 2, 3) for v in cu)
    length = torch.linalg.vector_norm(combine(fl.CFG(w), c, u), dim=1)
    assume(w != 1 and bool((length > 1e-2).all()))
    out = combine(fl.CFG(w) | renorm(dim=1, grow=True), c, u)
    expected = torch.linalg.vector_norm(c, dim=1)
    # the guided numbers, up to 400, are taken away again: their rounding is what is left
    assert_close(torch.linalg.vector_norm(out, dim=1), expected, rtol=1e-9, atol=1e-9)


@given(pairs(), scales, st.floats(1, 3))
def test_length_is_capped_and_direction_kept(cu, w, k):
    assume(w != 1)
    out, plain = combine(fl.CFG(w) | renorm(k), *cu), combine(fl.CFG(w), *cu)
    assert (norm(out) <= k * norm(cu[0]) + 1e-10).all()
    assert_close(out * norm(plain), plain * norm(out), rtol=1e-9, atol=1e-9)


@given(pairs(), scales, st.floats(0.1, 0.9))
def test_velocity_is_the_default_space(cu, w, t):
    x, level = cu[1].flip(0) + 1, fl.schedules.RectifiedFlow().level(t)
    there = [from_x0(d, x, level.alpha, level.sigma, "flow_prediction") for d in cu]
    back = combine(fl.CFG(w) | renorm(), *there)
    assume(bool((norm(combine(fl.CFG(w), *there)) > 1e-2).all()))
    back = to_x0(back, x, level.alpha, level.sigma, "flow_prediction")
    assert_close(combine(fl.CFG(w) | fl.Renorm(), *cu, x=x, t=level), back, rtol=1e-8, atol=1e-8)


def test_zero_lengths_stay_finite():
    zero = torch.zeros(1, 2, 3)
    one = torch.ones(1, 2, 3)
    for rule in (renorm(dim=1), renorm(dim=1, grow=True), renorm(grow=True)):
        assert torch.equal(combine(fl.CFG(3.0) | rule, zero, zero), zero)
        assert_close(combine(fl.CFG(3.0) | rule, zero, one), zero)  # the conditional length is 0
        assert_close(combine(fl.CFG(2.0) | rule, one, 2 * one), zero)  # the guided one is


def test_bad_values_are_named():
    for k in (0.5, float("nan")):
        with pytest.raises(ValueError, match=r"renorm: k must be in \[1, inf\], got"):
            fl.Renorm(k)
    with pytest.raises(ValueError, match="renorm: dim must be 1 or more, or negative, got 0"):
        fl.Renorm(dim=0)
    with pytest.raises(ValueError, match="renorm: k must be finite with grow=True"):
        fl.Renorm(inf, grow=True)
    for dim in (2, -2):
        with pytest.raises(ValueError, match=r"renorm: dim must be in 1..1 or -1..-1 .* got"):
            combine(fl.CFG(3.0) | renorm(dim=dim), C, U)
