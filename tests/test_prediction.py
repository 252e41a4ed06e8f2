"""Conversions between what networks predict: round trips, definitions, and the ends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fairlead.prediction import PREDICTIONS, direction_scale, edm_input, from_x0, to_x0
from fairlead.schedules import EDM, VP, RectifiedFlow
from fairlead.testing import pairs

PATHS = {
    "vp": VP("cosine"),
    "flow": RectifiedFlow(),
    "edm": EDM(),
}
paths = pytest.mark.parametrize("path", PATHS.values(), ids=list(PATHS))
kinds = pytest.mark.parametrize("kind", PREDICTIONS)


def level_of(path, part):
    return path.level(part * path.t_max)


@paths
@kinds
@given(pairs(), st.floats(0.01, 0.97))
def test_round_trip(path, kind, pair, part):
    x, d = pair
    at = level_of(path, part)
    there = from_x0(d, x, at.alpha, at.sigma, kind)
    # D = (x - sigma eps)/alpha: at alpha = 0.03 rounding in x is 30 times larger in D, and
    # sigma = 0.01 loses two digits of eps; with 1e-16 and |x| = 10 that stays below 1e-12
    back = to_x0(there, x, at.alpha, at.sigma, kind)
    assert_close(back, d, rtol=1e-10, atol=1e-10)
    again = from_x0(back, x, at.alpha, at.sigma, kind)
    assert_close(again, there, rtol=1e-9, atol=1e-9 * max(1, at.sigma / max(at.alpha, 1e-3)) ** 2)


@paths
@given(pairs(), st.floats(0.01, 0.97))
def test_definitions(path, pair, part):
    d, eps = pair
    at = level_of(path, part)
    x = at.alpha * d + at.sigma * eps
    expected = {
        "epsilon": eps,
        "sample": d,
        "v_prediction": at.alpha * eps - at.sigma * d,
        "flow_prediction": eps - d,
    }
    for kind, value in expected.items():
        scale = 1 + at.alpha / at.sigma
        out = from_x0(d, x, at.alpha, at.sigma, kind)
        assert_close(out, value, rtol=0, atol=1e-12 * scale * max(1, at.sigma))
        back = to_x0(value, x, at.alpha, at.sigma, kind)
        assert_close(back, d, rtol=0, atol=1e-12 * max(1, at.sigma) / at.alpha)


@given(pairs(), st.floats(0.01, 80.0))
def test_edm_is_the_papers_preconditioning(pair, sigma):
    x, f = pair
    skip = 0.25 / (sigma**2 + 0.25)
    out = sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
    assert_close(to_x0(f, x, 1.0, sigma, "edm"), skip * x + out * f, rtol=1e-12, atol=1e-12)
    assert_close(edm_input(x, 1.0, sigma), x / math.sqrt(sigma**2 + 0.25))


@paths
@pytest.mark.parametrize("kind", PREDICTIONS[:4])
@given(pairs(), pairs(), st.floats(0.02, 0.9))
def test_direction_scale_maps_differences(path, kind, pair, other, part):
    (x, a), b = pair, other[0]
    at = level_of(path, part)
    moved = from_x0(a, x, at.alpha, at.sigma, kind) - from_x0(b, x, at.alpha, at.sigma, kind)
    scaled = direction_scale(at.alpha, at.sigma, kind) * (a - b)
    assert_close(moved, scaled, rtol=0, atol=1e-10 * (1 + at.sigma + at.alpha / at.sigma))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["sample", "v_prediction", "flow_prediction", "edm"])
def test_all_noise_where_alpha_is_zero(dtype, kind):
    x, d = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    out = to_x0(from_x0(d, x, 0.0, 1.0, kind), x, 0.0, 1.0, kind)
    assert out.dtype == dtype
    assert_close(out, d)
    # where x holds nothing, v is -x0
    if kind == "v_prediction":
        assert torch.equal(to_x0(-d, x, 0.0, 1.0, kind), d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@kinds
def test_clean_data_is_its_own_estimate_where_sigma_is_zero(dtype, kind):
    x, out = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = out if kind == "sample" else x  # whatever else the network says
    assert torch.equal(to_x0(out, x, 1.0, 0.0, kind), expected)


def test_undefined_ends_say_so():
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="epsilon says nothing about x0 where alpha = 0"):
        to_x0(x, x, 0.0, 1.0, "epsilon")
    with pytest.raises(ValueError, match="epsilon says nothing"):
        to_x0(x, x, torch.tensor([[0.5], [0.0]]), 1.0, "epsilon")
    for kind in ("epsilon", "v_prediction", "flow_prediction", "edm"):
        with pytest.raises(ValueError, match=f"{kind} is undefined where sigma = 0"):
            from_x0(x, x, 1.0, 0.0, kind)
    for convert in (to_x0, from_x0):
        with pytest.raises(ValueError, match=r"prediction must be one of .*did you mean 'epsilon'"):
            convert(x, x, 0.5, 0.5, "eps")


@kinds
def test_levels_per_sample_are_a_loop(kind):
    x, d = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = [RectifiedFlow().level(t) for t in (0.2, 0.5, 0.8)]
    alpha, sigma = (
        torch.tensor([[getattr(v, name)] for v in levels], dtype=torch.float64)
        for name in ("alpha", "sigma")
    )
    for convert in (to_x0, from_x0):
        rows = [
            convert(d[i : i + 1], x[i : i + 1], v.alpha, v.sigma, kind)
            for i, v in enumerate(levels)
        ]
        assert_close(convert(d, x, alpha, sigma, kind), torch.cat(rows), rtol=1e-14, atol=1e-14)
