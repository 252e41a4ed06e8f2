"""Magnitude-aware guidance: by hand, the exact identities, and diffusers' function."""

from math import exp, sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import norm
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import combine, pairs

scales, rates = st.floats(-2, 20), st.floats(0, 10)
C, U = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0]])  # r = sqrt 2 / 2


def magnitude(a):
    return fl.Magnitude(a, space="sample")


def test_by_hand():
    w = 1 + 3 * exp(-2 * sqrt(0.5))
    assert_close(combine(fl.CFG(4.0) | magnitude(2.0), C, U), U + w * (C - U))


@given(pairs(), scales, rates)
def test_rate_zero_is_cfg_and_scale_one_conditional_to_the_bit(cu, w, a):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    assert torch.equal(combine(fl.CFG(w) | fl.Magnitude(0.0), *cu), combine(fl.CFG(w), *cu))
    assert torch.equal(combine(fl.CFG(1.0) | fl.Magnitude(a), *cu), cu[0])


@given(pairs(), scales, rates)
def test_is_cfg_at_the_effective_scale(cu, w, a):
    assume(bool((norm(cu[1]) > 1e-3).all()))
    r = norm(cu[0] - cu[1]) / norm(cu[1])
    effective = 1 + (w - 1) * torch.exp(-a * r).flatten()
    expected = combine(fl.CFG(effective), *cu)
    # exp(-a r) has the error a r, up to 1e5, times that of r; where that is large it is 0
    assert_close(combine(fl.CFG(w) | magnitude(a), *cu), expected, rtol=1e-9, atol=1e-9)


@given(pairs(), scales, rates, st.floats(0.1, 5))
def test_scale_equivariant(cu, w, a, k):
    assume(bool((norm(cu[1]) > 1e-3).all()))
    guide = fl.CFG(w) | magnitude(a)
    scaled = combine(guide, k * cu[0], k * cu[1])
    assert_close(scaled, k * combine(guide, *cu), rtol=1e-9, atol=1e-9)


@given(pairs(), scales, st.floats(0.1, 0.9))
def test_velocity_is_the_default_space(cu, w, t):
    x, level = cu[1].flip(0) + 1, fl.schedules.RectifiedFlow().level(t)
    there = [from_x0(d, x, level.alpha, level.sigma, "flow_prediction") for d in cu]
    assume(bool((norm(there[1]) > 1e-2).all()))
    back = combine(fl.CFG(w) | magnitude(1.0), *there)
    back = to_x0(back, x, level.alpha, level.sigma, "flow_prediction")
    out = combine(fl.CFG(w) | fl.Magnitude(1.0), *cu, x=x, t=level)
    assert_close(out, back, rtol=1e-8, atol=1e-8)


def test_negative_condition_stands_in_for_null():
    values = {"cond": C, "null": 5 + C, "negative": U}
    out = fl.combine(fl.CFG(4.0, against="negative") | magnitude(2.0), values)
    assert_close(out, combine(fl.CFG(4.0) | magnitude(2.0), C, U))


def test_scale_below_one_keeps_its_null():
    w = 1 - 0.5 * exp(-2 * sqrt(0.5))
    assert_close(combine(fl.CFG(0.5) | magnitude(2.0), C, U), U + w * (C - U))


def test_zero_null_turns_guidance_off():
    assert torch.equal(combine(fl.CFG(4.0) | magnitude(2.0), C, 0 * U), C)
    assert torch.equal(combine(fl.CFG(4.0) | magnitude(2.0), 0 * C, 0 * U), 0 * C)


@pytest.mark.parametrize("w", [0.5, 4.0])
def test_equals_diffusers_function_on_tokens(w):
    from diffusers.guiders.magnitude_aware_guidance import mambo_guidance

    generator = torch.Generator().manual_seed(0)
    # tokens (B, N, C): their function fails on four and more dimensions
    c, u = torch.randn(2, 3, 6, 4, generator=generator, dtype=torch.float64)
    theirs = mambo_guidance(c, u, w, 0.7)
    assert_close(combine(fl.CFG(w) | magnitude(0.7), c, u), theirs, rtol=1e-13, atol=1e-13)


def test_bad_value_is_named():
    with pytest.raises(ValueError, match=r"magnitude: a must be in \[0, inf\), got -1"):
        fl.Magnitude(-1.0)
    with pytest.raises(ValueError, match="magnitude: space must be one of sample"):
        fl.Magnitude(space="eps")
