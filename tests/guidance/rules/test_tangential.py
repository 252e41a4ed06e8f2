"""Tangential damping: by hand, the exact identities, and diffusers' function."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import inner, norm
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import combine, pairs

scales = st.floats(-2, 20)
RULE = fl.Tangential(space="sample")


def damped(c, u):
    """The null prediction that is left: w = 0 gives it, but by the rule's arithmetic."""
    return 2 * c - combine(fl.CFG(2.0) | RULE, c, u)


def clear(c, u):
    """Whether the two singular values are well apart, so that v_1 is well defined."""
    gap, cross = inner(c, c) - inner(u, u), 2 * inner(c, u)
    return bool((torch.hypot(gap, cross) > 1e-3 * (inner(c, c) + inner(u, u)) + 1e-6).all())


def test_by_hand():
    c = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    u = torch.tensor([[0.0, 1.0], [1.0, -0.5]])
    # first: orthogonal, c the longer: v_1 = c/|c|, nothing of u is left, y = 3 c
    # second: Gram matrix [[2, 0.5], [0.5, 1.25]], so tan 2h = 1/0.75, cos 2h = 0.6, b^2 = 0.2,
    # ab = 0.4
    left = 0.2 * u[1] + 0.4 * c[1]
    expected = torch.stack([3 * c[0], left + 3 * (c[1] - left)])
    assert_close(combine(fl.CFG(3.0) | RULE, c, u), expected)


@given(pairs(), scales)
def test_scale_one_is_conditional_to_the_bit(cu, w):
    assert torch.equal(combine(fl.CFG(1.0) | fl.Tangential(), *cu), cu[0])
    both = combine(fl.CFG((1.0, w)) | RULE, *cu)
    assert torch.equal(both[0], cu[0][0])


@given(pairs(), scales, st.floats(-3, 3))
def test_parallel_predictions_give_cfg(cu, w, k):
    assume(bool((norm(cu[0]) > 1e-3).all()))
    c, u = cu[0], k * cu[0]
    assert_close(combine(fl.CFG(w) | RULE, c, u), combine(fl.CFG(w), c, u), rtol=1e-9, atol=1e-9)


@given(pairs())
def test_is_the_projection_on_the_leading_singular_vector(cu):
    assume(clear(*cu))
    c, u = cu
    v = torch.linalg.svd(torch.stack([c, u], 1), full_matrices=False).Vh[:, 0]
    expected = (u * v).sum(1, keepdim=True) * v
    # singular values a relative 1e-3 apart amplify rounding a thousandfold
    assert_close(damped(c, u), expected, rtol=1e-9, atol=1e-9)


@given(pairs())
def test_order_of_stacking_does_not_matter(cu):
    """What is damped in either prediction lies along the same v_1."""
    assume(clear(*cu))
    own, other = damped(*cu), damped(cu[1], cu[0])
    product, lengths = inner(own, other).abs(), norm(own) * norm(other)
    assert_close(product, lengths, rtol=1e-7, atol=1e-7)


@given(pairs(), scales, st.floats(0.1, 5), st.sampled_from([-1, 1]))
def test_scale_equivariant(cu, w, k, sign):
    assume(clear(*cu))
    guide = fl.CFG(w) | RULE
    scaled = combine(guide, sign * k * cu[0], sign * k * cu[1])
    assert_close(scaled, sign * k * combine(guide, *cu), rtol=1e-8, atol=1e-8)


@given(pairs())
def test_what_is_left_is_not_longer(cu):
    assert (norm(damped(*cu)) <= norm(cu[1]) + 1e-12 * (1 + norm(cu[0]))).all()


@given(pairs(), scales, st.floats(0.1, 0.9))
def test_noise_is_the_default_space(cu, w, t):
    x, level = cu[1].flip(0) + 1, fl.schedules.RectifiedFlow().level(t)
    there = [from_x0(d, x, level.alpha, level.sigma, "epsilon") for d in cu]
    assume(clear(*there))
    back = to_x0(combine(fl.CFG(w) | RULE, *there), x, level.alpha, level.sigma, "epsilon")
    out = combine(fl.CFG(w) | fl.Tangential(), *cu, x=x, t=level)
    assert_close(out, back, rtol=1e-7, atol=1e-7)


def test_undecided_direction_damps_nothing():
    c, u = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert torch.equal(combine(fl.CFG(3.0) | RULE, c, u), combine(fl.CFG(3.0), c, u))
    assert torch.equal(combine(fl.CFG(3.0) | RULE, 0 * c, 0 * u), 0 * c)


def test_equals_diffusers_function():
    guider = pytest.importorskip("diffusers.guiders.tangential_classifier_free_guidance")
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 3, 2, 4, 4, generator=generator)
    theirs = guider.normalized_guidance(c, u, 4.0)
    # both in float32
    assert_close(combine(fl.CFG(4.0) | RULE, c, u), theirs, rtol=1e-5, atol=1e-5)


def test_unknown_space_is_named():
    with pytest.raises(ValueError, match="tangential: space must be one of sample, epsilon"):
        fl.Tangential("score")
