"""Frequency-decoupled guidance: the pyramid, the exact identities, torch's own operators."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import project
from fairlead.guidance.rules.frequency import collapse, pyramid
from fairlead.testing import combine

SIZES = [(8,), (1,), (2,), (13,), (16, 16), (15, 13), (5, 1), (8, 7, 6)]


def noise(*shape, key=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=dtype)


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
levels, seeds = st.integers(1, 4), st.integers(0, 10**6)


@given(shapes, levels, seeds)
def test_bands_sum_to_what_they_were(size, number, key):
    x = noise(2, 3, *size, key=key)
    assert_close(collapse(pyramid(x, number)), x, rtol=1e-13, atol=1e-13)


@given(shapes, levels, seeds, st.floats(-2, 12))
def test_equal_gains_scale_the_update(size, number, key, w):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    c, u = noise(2, 2, 1, *size, key=key)
    one = fl.CFG(w) | fl.Frequency([1.0] * number)
    assert torch.equal(combine(one, c, u), combine(fl.CFG(w), c, u))
    half = combine(fl.CFG(w) | fl.Frequency([0.5] * number), c, u)
    assert_close(half, combine(fl.CFG((w + 1) / 2), c, u), rtol=1e-12, atol=1e-12)
    # equal gains take a shortcut; this is the long way
    summed = c + sum_bands((w - 1) * (c - u), [0.5] * number)
    assert_close(half, summed, rtol=1e-12, atol=1e-12)


def sum_bands(update, gains):
    return collapse([g * b for g, b in zip(gains, pyramid(update, len(gains)), strict=True)])


@given(shapes, seeds, st.floats(-2, 12))
def test_one_level_is_cfg(size, key, w):
    c, u = noise(2, 2, 1, *size, key=key)
    assert_close(combine(fl.CFG(3.0) | fl.Frequency([w]), c, u), c + 2 * w * (c - u))


@given(shapes, seeds, st.floats(1.5, 8), st.floats(-1, 3), st.floats(-1, 3))
def test_is_the_papers_formula(size, key, w, high, low):
    """Per level `l_u + w_k (l_c - l_u)`, and the sum of that."""
    c, u = noise(2, 2, 2, *size, key=key)
    guided = [
        lu + (1 + (w - 1) * g) * (lc - lu)
        for lc, lu, g in zip(pyramid(c, 2), pyramid(u, 2), (high, low), strict=True)
    ]
    out = combine(fl.CFG(w) | fl.Frequency([high, low]), c, u)
    assert_close(out, collapse(guided), rtol=1e-11, atol=1e-11)


@given(shapes, seeds, st.floats(1.5, 8), st.floats(-1, 2), st.floats(-1, 2))
def test_projection_acts_in_each_band(size, key, w, high, low):
    c, u = noise(2, 2, 2, *size, key=key)
    guided = []
    for lc, lu, eta in zip(pyramid(c, 2), pyramid(u, 2), (high, low), strict=True):
        shift = lc - lu
        along = project(shift, onto=lc)
        guided.append(lc + (w - 1) * (shift - along + eta * along))
    out = combine(fl.CFG(w) | fl.Frequency([1.0, 1.0], eta=[high, low]), c, u)
    assert_close(out, collapse(guided), rtol=1e-10, atol=1e-10)


def test_projection_of_one_level_is_apg():
    c, u = noise(2, 3, 2, 5, 4)
    out = combine(fl.CFG(4.0) | fl.Frequency([1.0], eta=0.3), c, u)
    assert_close(out, combine(fl.CFG(4.0) | fl.APG(eta=0.3), c, u), rtol=1e-12, atol=1e-12)


def test_by_hand():
    # taps 1, 4, 6, 4, 1 sixteenths, mirrored: pixels 0 and 3 see pixel 2 twice, pixel 2 itself too
    fine, coarse = pyramid(torch.tensor([[[0.0, 0.0, 16.0, 0.0]]]), 2)
    # blurred: 1 + 1, 4, 6 + 1, 4 + 4; neighbours are averaged
    assert_close(coarse.flatten(), torch.tensor([3.0, 7.5]))
    # brought back: 3, 4.125, 6.375, 7.5, blurred at pixel 0: (6 3 + 8 4.125 + 2 6.375)/16
    assert_close(fine[..., 0], torch.tensor([[-3.984375]]))


@pytest.mark.parametrize("size", [(9,), (16, 12), (15, 13), (8, 7, 6)], ids=str)
def test_pyramid_is_torch_s_convolution_and_interpolation(size):
    x = noise(2, 3, *size)
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]

    def blur(y):
        taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=y.dtype) / 16
        for dim in range(2, y.ndim):
            flat = y.movedim(dim, -1)
            padded = F.pad(flat.reshape(1, -1, flat.shape[-1]), (2, 2), mode="reflect")
            out = F.conv1d(padded.movedim(1, 0), taps[None, None]).movedim(0, 1)
            y = out.reshape(flat.shape).movedim(-1, dim)
        return y

    def resize(y, to):
        return F.interpolate(y, to, mode=mode, align_corners=False)

    coarse = resize(blur(x), [n // 2 for n in size])
    fine = x - blur(resize(coarse, size))
    ours = pyramid(x, 2)
    assert_close(ours[1], coarse, rtol=1e-12, atol=1e-12)
    assert_close(ours[0], fine, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_samples_are_independent(size):
    c, u = noise(2, 3, 2, *size)
    guide = fl.CFG(4.0) | fl.Frequency([2.0, 0.5, 1.0], eta=0.5)
    alone = torch.cat([combine(guide, c[i : i + 1], u[i : i + 1]) for i in range(3)])
    assert_close(combine(guide, c, u), alone, rtol=1e-12, atol=1e-12)


def test_constant_update_is_of_the_lowest_band():
    c, u = torch.ones(1, 1, 6, 5), torch.zeros(1, 1, 6, 5)
    assert_close(combine(fl.CFG(3.0) | fl.Frequency([7.0, 0.5]), c, u), 2 * c)


def test_spaces_agree_without_projection_only():
    c, u, x = noise(3, 2, 1, 6, 6)
    at = {"x": x, "t": fl.schedules.EDM().level(1.5)}
    for eta, agree in ((1.0, True), (0.0, False)):
        outs = [
            combine(fl.CFG(4.0) | fl.Frequency([1.0, 0.3], eta, space), c, u, **at)
            for space in ("sample", "epsilon")
        ]
        assert torch.allclose(*outs, rtol=1e-10, atol=1e-10) == agree


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="frequency: gains must be a list of one factor a band"):
        fl.Frequency([])
    with pytest.raises(ValueError, match=r"frequency: gains must be a list .* got 0.5"):
        fl.Frequency(0.5)
    with pytest.raises(ValueError, match=r"frequency: gains must be in .* got nan"):
        fl.Frequency([1.0, float("nan")])
    with pytest.raises(ValueError, match=r"frequency: eta must be one number or 2, .* got 3"):
        fl.Frequency([1.0, 2.0], eta=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"frequency: data must have dimensions .* \(2, 4\)"):
        combine("cfg(3) | frequency([1, 2])", noise(2, 4), noise(2, 4, key=1))
