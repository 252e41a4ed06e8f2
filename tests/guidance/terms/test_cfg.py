"""CFG and negative conditions: values by hand and the exact identities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import combine, pairs, tiny_denoiser

C, U = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, -2.0]])
scales = st.floats(-2, 20)


@pytest.mark.parametrize(
    ("w", "expected"), [(0.5, [0.0, -1.0]), (2.0, [3.0, 2.0]), (3.0, [5.0, 4.0])]
)
def test_worked_by_hand(w, expected):
    assert torch.equal(combine(fl.CFG(w), C, U), torch.tensor([expected]))


@given(pairs())
def test_ends_are_the_branches_to_the_bit(cu):
    assert torch.equal(combine(fl.CFG(1.0), *cu), cu[0])
    assert torch.equal(combine(fl.CFG(0.0), *cu), cu[1])


@given(pairs(), scales)
def test_equal_branches_give_themselves(cu, w):
    assert_close(combine(fl.CFG(w), cu[1], cu[1]), cu[1], rtol=1e-15, atol=0)


@given(pairs(), scales, scales, st.floats(0, 1))
def test_linear_in_w(cu, a, b, share):
    mixed = share * combine(fl.CFG(a), *cu) + (1 - share) * combine(fl.CFG(b), *cu)
    assert_close(combine(fl.CFG(share * a + (1 - share) * b), *cu), mixed, rtol=0, atol=1e-11)


@pytest.mark.parametrize("space", ["epsilon", "v_prediction", "flow_prediction", "edm"])
@given(pairs(), scales, st.floats(0.05, 0.95))
def test_the_same_in_every_space(space, cu, w, t):
    x = cu[0].flip(0) + 1
    level = fl.schedules.RectifiedFlow().level(t)
    there = [from_x0(d, x, level.alpha, level.sigma, space) for d in cu]
    back = to_x0(combine(fl.CFG(w), *there), x, level.alpha, level.sigma, space)
    # eps is up to 1/0.05 times larger than x0, and w up to 20
    assert_close(back, combine(fl.CFG(w), *cu), rtol=0, atol=1e-9)


@given(pairs(batch=3), st.tuples(scales, scales, scales))
def test_scale_per_sample_is_a_loop(cu, w):
    c, u = cu
    single = [combine(fl.CFG(w[i]), c[i : i + 1], u[i : i + 1]) for i in range(3)]
    assert_close(combine(fl.CFG(torch.tensor(w)), c, u), torch.cat(single), rtol=0, atol=1e-4)
    assert_close(combine(fl.CFG(w), c, u), torch.cat(single), rtol=1e-14, atol=1e-12)


def test_scale_per_sample_by_hand():
    c, u = C.repeat(3, 1), U.repeat(3, 1)
    expected = torch.tensor([[1.0, 0.0], [-1.0, -2.0], [5.0, 4.0]])
    assert_close(combine(fl.CFG([1.0, 0.0, 3.0]), c, u), expected)


@given(pairs(), pairs(), scales, scales)
def test_negative_replaces_null(cu, other, w, wn):
    (c, u), n = cu, other[0]
    replaced = fl.combine(fl.CFG(w, against="negative"), {"cond": c, "negative": n})
    assert_close(replaced, n + w * (c - n), rtol=0, atol=1e-11)
    same = fl.combine(fl.CFG(w, against="negative"), {"cond": c, "negative": u})
    assert torch.equal(same, combine(fl.CFG(w), c, u))
    # y_u + w (y_c - y_u) - wn (y_n - y_u), the form with three branches
    form = fl.CFG(w - wn) + fl.CFG(1 + wn, against="negative")
    three = fl.combine(form, {"cond": c, "null": u, "negative": n})
    assert_close(three, u + w * (c - u) - wn * (n - u), rtol=0, atol=1e-11)
    not_ = fl.CFG(1.0) + fl.CFG(w, against="negative")  # wn = w - 1 needs no null at all
    assert_close(fl.combine(not_, {"cond": c, "negative": n}), replaced, rtol=0, atol=0)


def test_negative_reaches_the_network():
    d, label = tiny_denoiser(), {"label": [3, 5]}
    options = {"steps": 3, "sampler": "ddim"}
    null = fl.sample(d, label, guide="cfg(3)", **options).x
    guide = fl.CFG(3.0, against="negative")
    given_null = fl.sample(d, label, guide=guide, negative={"label": 10}, **options).x
    assert torch.equal(null, given_null)
    itself = fl.sample(d, label, guide=guide, negative=label, **options).x
    assert_close(itself, fl.sample(d, label, **options).x)
    other = fl.sample(d, label, guide=guide, negative={"label": [1, 2]}, **options).x
    assert not torch.allclose(other, null)


def test_missing_negative_is_named():
    with pytest.raises(ValueError, match=r"condition state 'negative'.*states=\{'negative'"):
        fl.sample(tiny_denoiser(), {"label": [3]}, guide=fl.CFG(3.0, against="negative"), steps=2)


def test_log_probabilities_are_normalised():
    c, u = torch.randn(2, 5).log_softmax(-1), torch.randn(2, 5).log_softmax(-1)
    out = fl.combine("cfg(2)", {"cond": c, "null": u}, domain="logprob")
    assert_close(out, (2 * c - u).log_softmax(-1))
    assert_close(out.exp().sum(-1), torch.ones(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_scale_is_named(value):
    with pytest.raises(ValueError, match=r"cfg: w must be in \(-inf, inf\), got"):
        fl.CFG(value)
    with pytest.raises(ValueError, match="cfg: w must be in"):
        fl.CFG([1.0, value])


def test_wrong_number_of_scales_is_named():
    with pytest.raises(ValueError, match="3 values were given for a batch of 2"):
        fl.sample(tiny_denoiser(), {"label": [1, 2]}, guide="cfg([1, 2, 3])", steps=2, first=7)


@given(pairs(), scales, st.floats(0.05, 0.95))
def test_velocities_are_guided_as_clean_estimates_are(cu, w, t):
    """Guided flows: on every affine path, and with time in either direction."""
    x = cu[0].flip(0) + 1
    for schedule in (fl.schedules.RectifiedFlow(), fl.schedules.VP("cosine")):
        level = schedule.level(t)
        where = (x, level.alpha, level.sigma, "flow_prediction")
        uc, uu = (from_x0(d, *where) for d in cu)
        guided = combine(fl.CFG(w), uc, uu)
        assert_close(guided, -combine(fl.CFG(w), -uc, -uu))
        back = to_x0(guided, *where)
        assert_close(back, combine(fl.CFG(w), *cu), rtol=1e-9, atol=1e-9)


def test_negative_in_a_window_takes_the_place_of_null():
    """`c-` where `a <= i/N < b`, null elsewhere: the same terms under intervals that meet."""
    window = "(cfg(3) | interval(0, 0.25)) + (cfg(3, against='negative') | interval(0.25, 0.5))"
    guide = fl.guide(f"{window} + (cfg(3) | interval(0.5, 1))")
    run = fl.Run(steps=8)
    draws = torch.Generator().manual_seed(0)
    c, u, n = torch.randn(3, 2, 4, generator=draws, dtype=torch.float64)
    for i in range(8):
        name, away = ("negative", n) if 2 <= i < 4 else ("null", u)
        out = fl.combine(guide, {"cond": c, name: away}, run=run)
        assert_close(out, away + 3 * (c - away))
