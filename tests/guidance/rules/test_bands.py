"""Frequency-aware guidance: torch's own resizing, the exact identities, values by hand."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import combine

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
seeds, scales, factors = st.integers(0, 10**6), st.floats(-2, 12), st.floats(-1, 4)


def noise(*shape, key=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def low(y, ratio):
    """The low band by torch's interpolation, pixel centres matched, without antialiasing."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[y.ndim]
    small = tuple(max(1, round(n * ratio)) for n in y.shape[2:])
    down = F.interpolate(y, small, mode=mode, align_corners=False)
    return F.interpolate(down, y.shape[2:], mode=mode, align_corners=False)


@given(shapes, seeds, scales, st.floats(0.2, 1.0))
def test_equal_scales_are_cfg(size, key, w, ratio):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    c, u = noise(2, 2, 1, *size, key=key)
    one = fl.CFG(w) | fl.Bands(1.0, ratio=ratio)
    assert torch.equal(combine(one, c, u), combine(fl.CFG(w), c, u))
    two = combine(fl.CFG(w) | fl.Bands(2.0, 2.0, ratio=ratio), c, u)
    assert_close(two, combine(fl.CFG(2 * w - 1), c, u), rtol=1e-12, atol=1e-12)


@given(shapes, seeds, st.floats(1.5, 8), factors, factors, st.sampled_from([0.5, 2 / 3, 0.3]))
def test_is_the_papers_formula(size, key, w, high, part, ratio):
    """`[low_u + w_l (low_c - low_u)] + [high_u + w_h (high_c - high_u)]`."""
    c, u = noise(2, 2, 2, *size, key=key)
    wl, wh = (1 + (w - 1) * g for g in (part, high))
    lc, lu = low(c, ratio), low(u, ratio)
    expected = lu + wl * (lc - lu) + (u - lu) + wh * ((c - lc) - (u - lu))
    out = combine(fl.CFG(w) | fl.Bands(high, part, ratio=ratio), c, u)
    assert_close(out, expected, rtol=1e-10, atol=1e-10)


@given(seeds, st.floats(0.2, 0.9))
def test_constant_inputs_have_no_high_band(key, ratio):
    c, u = noise(2, 1, 3, 1, 1, key=key).expand(2, 1, 3, 7, 6)
    out = combine(fl.CFG(3.0) | fl.Bands(9.0, ratio=ratio), c, u)
    assert_close(out, combine(fl.CFG(3.0), c, u), rtol=1e-12, atol=1e-12)


def test_all_spaces_agree():
    c, u, x = noise(3, 2, 2, 8, 8)
    schedule = fl.schedules.RectifiedFlow()
    level = schedule.level(0.3)
    where = (x, level.alpha, level.sigma, "flow_prediction")
    there = [fl.prediction.from_x0(d, *where) for d in (c, u)]
    guide = fl.CFG(3.0) | fl.Bands(2.0, 0.5)
    velocity = combine(guide, *there)
    back = fl.prediction.to_x0(velocity, *where)
    assert_close(combine(guide, c, u), back, rtol=1e-12, atol=1e-12)


def test_by_hand_in_one_dimension():
    c, u = torch.tensor([[[0.0, 2.0, 4.0, 6.0]]]), torch.zeros(1, 1, 4)
    # down to 2: means 1 and 5; back up: 1, 2, 4, 5, so the high band is -1, 0, 0, 1
    out = combine(fl.CFG(2.0) | fl.Bands(3.0), c, u)
    assert_close(out, c + torch.tensor([[[1 - 3.0, 2.0, 4.0, 5 + 3.0]]]))
    whole = combine(fl.CFG(2.0) | fl.Bands(3.0, ratio=1.0), c, u)
    assert_close(whole, 2 * c)  # nothing is finer than the size itself


def test_errors():
    with pytest.raises(ValueError, match=r"bands: ratio must be in \(0, 1\], got 0"):
        fl.Bands(2.0, ratio=0.0)
    with pytest.raises(ValueError, match=r"bands: data must have dimensions behind the channels"):
        combine(fl.CFG(2.0) | fl.Bands(2.0), noise(2, 3), noise(2, 3))
