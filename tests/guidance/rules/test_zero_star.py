"""CFG-Zero*: by hand, the exact identities, and diffusers' scale."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import norm
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import combine, pairs

C, U = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]])
scales = st.floats(-2, 20)
STAR = fl.CFGZeroStar(zero_steps=0, space="sample")


def long_enough(x):
    return bool((norm(x) > 1e-2).all())


def test_by_hand():
    # s = 2/4, s u = (1, 0), so y = (1, 0) + 3 (0, 2)
    assert_close(combine(fl.CFG(3.0) | STAR, C, U), torch.tensor([[1.0, 6.0]]))


def test_velocity_is_the_default_space():
    level, x = fl.schedules.RectifiedFlow().level(0.5), torch.tensor([[3.0, 4.0]])
    # u = (x - D)/t: (4, 4) and (2, 8); s = 40/68, s u = (20, 80)/17; y = s u + 3 (u_c - s u)
    expected = x - 0.5 * (torch.tensor([[20.0, 80.0]]) / 17 * -2 + 12)
    assert_close(combine("cfg(3) | zero_star(0)", C, U, x=x, t=level), expected)


@given(pairs(), scales)
def test_scale_one_is_conditional_to_the_bit(cu, w):
    assert torch.equal(combine(fl.CFG(1.0) | fl.CFGZeroStar(), *cu), cu[0])
    x = torch.zeros_like(cu[0])
    both = combine(fl.CFG((1.0, w)) | STAR, *cu, x=x)
    assert torch.equal(both[0], cu[0][0])


@given(pairs(), scales, st.floats(0.1, 10), st.sampled_from([-1, 1]))
def test_null_parallel_to_cond_gives_cond(cu, w, k, sign):
    assume(long_enough(cu[0]))
    assert_close(combine(fl.CFG(w) | STAR, cu[0], sign * k * cu[0]), cu[0], rtol=1e-10, atol=1e-10)


@given(pairs(), scales, st.floats(0.1, 10), st.sampled_from([-1, 1]))
def test_length_and_sign_of_null_do_not_matter(cu, w, k, sign):
    assume(long_enough(cu[1]))
    out = combine(fl.CFG(w) | STAR, cu[0], sign * k * cu[1])
    # w up to 20 times the rounding of numbers up to 100
    assert_close(out, combine(fl.CFG(w) | STAR, *cu), rtol=1e-10, atol=1e-10)


@given(pairs(), scales)
def test_without_zero_steps_at_unit_scale_it_is_cfg(cu, w):
    # move u along itself until <c, u> = ||u||^2: here by moving c
    assume(long_enough(cu[1]))
    c, u = cu
    c = c + u * (1 - (c * u).sum(1, keepdim=True) / norm(u) ** 2)
    assert_close(combine(fl.CFG(w) | STAR, c, u), combine(fl.CFG(w), c, u), rtol=1e-10, atol=1e-10)


@given(pairs(), scales)
def test_error_of_null_scale_is_what_it_removes(cu, w):
    """The guided update is orthogonal to the null prediction, so s is the least-squares fit."""
    assume(w != 1)
    added = combine(fl.CFG(w) | STAR, *cu) - cu[0]
    size = norm(added) * norm(cu[1]) + norm(cu[0]) * norm(cu[1]) * abs(w - 1) + 1
    assert ((added * cu[1]).sum(1, keepdim=True).abs() <= 1e-12 * size).all()


def test_zero_null_is_scaled_to_zero():
    assert_close(combine(fl.CFG(3.0) | STAR, C, 0 * U), 3 * C)


@pytest.mark.parametrize("schedule", [fl.schedules.RectifiedFlow(), fl.schedules.EDM()])
def test_first_steps_have_no_velocity(schedule):
    x, run = torch.tensor([[3.0, -1.0]]), fl.Run(steps=4)
    level = schedule.level(0.75)
    guide = fl.CFG(3.0) | fl.CFGZeroStar(zero_steps=2)
    for _ in range(2):
        out = combine(guide, C, U, run, x=x, t=level)
        velocity = from_x0(out, x, level.alpha, level.sigma, "flow_prediction")
        assert_close(velocity, 0 * x, rtol=0, atol=1e-6)
    plain = combine(fl.CFG(3.0) | fl.CFGZeroStar(0), C, U, x=x, t=level)
    assert torch.equal(combine(guide, C, U, run, x=x, t=level), plain)


def test_state_does_not_move_in_a_zero_step():
    mixture = fl.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5, labels=[0, 1])
    model = mixture.denoiser(fl.schedules.RectifiedFlow())
    seen = []
    fl.sample(
        model,
        {"label": torch.zeros(5, dtype=torch.long)},
        guide="cfg(3) | zero_star(2)",
        sampler="euler",
        steps=5,
        dtype=torch.float64,
        callback=lambda step: seen.append(step.x.clone()),
    )
    assert_close(seen[0], seen[1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(seen[1], seen[2], atol=1e-2)


@given(pairs(), scales, st.floats(0.1, 0.9))
def test_other_space_is_the_rule_on_that_prediction(cu, w, t):
    x, level = cu[1].flip(0) + 1, fl.schedules.RectifiedFlow().level(t)
    there = [from_x0(d, x, level.alpha, level.sigma, "epsilon") for d in cu]
    assume(long_enough(there[1]))
    back = to_x0(combine(fl.CFG(w) | STAR, *there), x, level.alpha, level.sigma, "epsilon")
    out = combine(fl.CFG(w) | fl.CFGZeroStar(0, "epsilon"), *cu, x=x, t=level)
    # a null noise of 1e-2 loses two digits, the way back by sigma/alpha up to one
    assert_close(out, back, rtol=1e-8, atol=1e-8)


def test_negative_condition_and_sums_stand_in_for_null():
    values = {"cond": C, "null": 5 + C, "negative": U}
    out = fl.combine(fl.CFG(3.0, against="negative") | STAR, values)
    assert_close(out, torch.tensor([[1.0, 6.0]]))
    # two terms of weight 1 against 0 and 2 U are one of weight 2 against U
    halves = fl.CFG(2.0) + fl.CFG(2.0, against="negative") | STAR
    out = fl.combine(halves, {"cond": C, "null": 0 * U, "negative": 2 * U})
    assert_close(out, torch.tensor([[1.0, 6.0]]))


def test_terms_whose_weights_cancel_are_left_alone():
    guide = fl.CFG(0.0) + fl.CFG(2.0, against="negative")
    values = {"cond": C, "null": U, "negative": -U}
    assert_close(fl.combine(guide | STAR, values), fl.combine(guide, values))


def test_equals_diffusers_rule():
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=1)
    guider._step = 1
    # they find s in float32 and add 1e-8 to ||u||^2 = 32 or so
    assert_close(combine(fl.CFG(4.0) | STAR, c, u), guider.forward(c, u).pred, rtol=1e-6, atol=1e-6)


def test_bad_value_is_named():
    with pytest.raises(ValueError, match=r"zero_star: zero_steps must be in \[0, inf\), got -1"):
        fl.CFGZeroStar(-1)
    with pytest.raises(ValueError, match="zero_star: space must be one of sample, epsilon"):
        fl.CFGZeroStar(space="velocity")
    with pytest.raises(ValueError, match="give x, t and schedule"):
        combine("cfg(3) | zero_star(0)", C, U)
