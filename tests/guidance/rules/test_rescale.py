"""Rescale: by hand, the exact identities, and diffusers' function in each space."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import combine, pairs

scales, shares = st.floats(-2, 20), st.floats(0, 1)


def spread(x):
    return x.std(1)


def test_by_hand():
    c, u = torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[0.0, 0.0, -3.0]])
    # y = u + 2 (c - u) = (2, -2, 3): mean 1, std sqrt((1 + 9 + 4)/2) = sqrt 7; std(c) = 1
    y = torch.tensor([[2.0, -2.0, 3.0]])
    assert_close(combine("cfg(2) | rescale(1)", c, u), y / 7**0.5)
    assert_close(combine("cfg(2) | rescale(0.5)", c, u), y / 2 * (1 + 7**-0.5))


@given(pairs(), scales)
def test_zero_is_cfg_and_scale_one_conditional_to_the_bit(cu, w):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    assert torch.equal(combine(fl.CFG(w) | fl.Rescale(0.0), *cu), combine(fl.CFG(w), *cu))
    assert torch.equal(combine(fl.CFG(1.0) | fl.Rescale(0.7), *cu), cu[0])


@given(pairs(), scales)
def test_one_restores_the_deviation(cu, w):
    assume(w != 1 and bool((spread(combine(fl.CFG(w), *cu)) > 1e-3).all()))
    out = combine(fl.CFG(w) | fl.Rescale(1.0), *cu)
    # rounding in y, of length up to 20 times that of c, is what is left
    assert_close(spread(out), spread(cu[0]), rtol=1e-8, atol=1e-10)


@given(pairs(), scales, shares, st.floats(0.1, 5))
def test_scale_equivariant(cu, w, phi, k):
    assume(bool((spread(combine(fl.CFG(w), *cu)) > 1e-3).all()))
    guide = fl.CFG(w) | fl.Rescale(phi)
    scaled = combine(guide, k * cu[0], k * cu[1])
    assert_close(scaled, k * combine(guide, *cu), rtol=1e-8, atol=1e-8)


def test_constant_prediction_stays_finite():
    c, u = torch.zeros(1, 4), torch.ones(1, 4)
    assert combine("cfg(3) | rescale(0.7)", c, u).isfinite().all()


@pytest.mark.parametrize("space", ["sample", "epsilon", "v_prediction", "flow_prediction"])
@given(pairs(size=6), st.floats(-1, 10), shares, st.floats(0.1, 0.9))
def test_equals_diffusers_in_each_space(space, cu, w, phi, t):
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    x, level = cu[1].flip(0) + 1, fl.schedules.VP("cosine").level(t)
    c, u = (from_x0(d, x, level.alpha, level.sigma, space) for d in cu)
    y = u + w * (c - u)
    assume(bool((spread(y) > 1e-2).all()))
    theirs = to_x0(rescale_noise_cfg(y, c, phi), x, level.alpha, level.sigma, space)
    out = combine(fl.CFG(w) | fl.Rescale(phi, space), *cu, x=x, t=level)
    assert_close(out, theirs, rtol=1e-7, atol=1e-7)


def test_spaces_differ_and_need_the_level():
    c, u, x = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0))
    level = fl.schedules.EDM().level(2.0)
    in_x0 = combine("cfg(5) | rescale(1)", c, u, x=x, t=level)
    in_eps = combine("cfg(5) | rescale(1, space='epsilon')", c, u, x=x, t=level)
    assert not torch.allclose(in_x0, in_eps, atol=1e-2)
    with pytest.raises(ValueError, match="needs the noise level; give x, t and schedule"):
        combine("cfg(5) | rescale(1, space='epsilon')", c, u)


@pytest.mark.parametrize("phi", [-0.1, 1.1, float("nan")])
def test_bad_value_is_named(phi):
    with pytest.raises(ValueError, match=rf"rescale: phi must be in \[0, 1\], got {phi}"):
        fl.Rescale(phi)
