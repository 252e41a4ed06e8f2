"""Skimmed guidance: masks by hand, and the exact identities."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import combine, pairs

scales, limits = st.floats(-2, 20), st.floats(1, 10)


def plain(scale):
    return fl.Skim(scale, flip=False)


def at(x):
    return {"x": torch.tensor([x]), "t": 1.0, "schedule": fl.schedules.EDM()}


@pytest.mark.parametrize(
    ("c", "u", "expected"),
    [
        (2.0, 1.0, 2.0 + 2 * 1.0),  # c beyond u, guided 10: outwards, at k = 3 instead of 9
        (-2.0, -1.0, -4.0),  # the mirror image
        (2.0, -1.0, 2.0 + 2 * 3.0),  # f = 2/8, n' = 1.25, which extrapolates inwards
        (9.0, -2.0, 9.0 + 2 * 11.0),
        (1.0, -9.0, 1.0 + 0.5 * 10.0),  # n' = -1.5 still extrapolates outwards: f again
        (-1.0, -1.0, -1.0),
    ],
)
def test_by_hand(c, u, expected):
    out = combine(fl.CFG(9.0) | plain(3.0), torch.tensor([[c]]), torch.tensor([[u]]))
    assert_close(out, torch.tensor([[expected]]))


def test_null_that_is_driven_outwards_is_skimmed_too():
    # c = 1, u = 3: u beyond c, and u - 8 (c - u) = 19 beyond it: at k = 3 instead of 9
    out = combine(fl.CFG(9.0) | plain(3.0), torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert_close(out, torch.tensor([[1 + 2 * (1.0 - 3.0)]]))


def test_flip_asks_that_the_value_moves_away_from_x():
    c, u = torch.tensor([[2.0]]), torch.tensor([[1.0]])  # guided 10
    near = combine(fl.CFG(9.0) | fl.Skim(3.0), c, u, **at([5.0]))
    assert_close(near, torch.tensor([[4.0]]))
    far = combine(fl.CFG(9.0) | fl.Skim(3.0), c, u, **at([50.0]))
    assert_close(far, torch.tensor([[10.0]]))


@given(pairs(), scales, limits)
def test_value_by_value_between_the_scales(cu, w, k):
    """Every value is guided at a scale in [1, w]: at k, w, or by both masks at less than k."""
    assume(w > k)
    c, u = cu
    out = combine(fl.CFG(w) | plain(k), c, u)
    low, high = c, u + w * (c - u)
    slack = 1e-9 * (1 + high.abs())
    assert bool((out >= torch.minimum(low, high) - slack).all())
    assert bool((out <= torch.maximum(low, high) + slack).all())


@given(pairs(), scales, limits)
def test_scales_up_to_the_limit_are_left(cu, w, k):
    assume(w <= k)
    assume(w - 1 != -1)
    out = combine(fl.CFG(w) | plain(k), *cu)
    assert_close(out, combine(fl.CFG(w), *cu), rtol=1e-12, atol=1e-12)


@given(pairs(), scales)
def test_no_limit_is_cfg_to_the_bit(cu, w):
    assume(w - 1 != -1)
    assert torch.equal(combine(fl.CFG(w) | fl.Skim(float("inf")), *cu), combine(fl.CFG(w), *cu))


@given(pairs(), st.floats(1.5, 20), st.floats(0.1, 5))
def test_scale_equivariant_and_odd(cu, w, k):
    guide = fl.CFG(w) | plain(2.0)
    scaled = combine(guide, k * cu[0], k * cu[1])
    assume(bool((cu[0] - cu[1]).abs().min() > 1e-3))
    assert_close(scaled, k * combine(guide, *cu), rtol=1e-9, atol=1e-9)
    assert_close(combine(guide, -cu[0], -cu[1]), -combine(guide, *cu), rtol=1e-9, atol=1e-9)


def test_one_scale_a_sample():
    c, u = torch.tensor([[2.0]] * 3), torch.tensor([[1.0]] * 3)
    out = combine(fl.CFG([9.0, 1.0, 2.0]) | plain(3.0), c, u)
    assert_close(out, torch.tensor([[4.0], [2.0], [3.0]]))


def test_errors():
    with pytest.raises(ValueError, match=r"skim: scale must be in \[1, inf\], got 0.5"):
        fl.Skim(0.5)
    with pytest.raises(ValueError, match="needs the noisy sample"):
        combine(fl.CFG(3.0) | fl.Skim(2.0), torch.ones(1, 2), torch.zeros(1, 2))
