"""Thresholding: by hand, the exact identities, and diffusers' function."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.rules.threshold import quantile
from fairlead.testing import combine, pairs

scales, shares = st.floats(-2, 20), st.floats(0, 1)
C, U = torch.tensor([[1.0, -0.5, 0.25]]), torch.tensor([[-1.0, 0.0, 0.0]])  # cfg(2): 3, -1, 0.5


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (fl.Threshold(ceiling=1.0), [1.0, -1.0, 0.5]),
        (fl.Threshold(1.0), [1.0, -1 / 3, 0.5 / 3]),
        (fl.Threshold(0.75), [1.0, -0.5, 0.25]),  # halfway between 1 and 3
        (fl.Threshold(0.75, ceiling=1.25), [1.0, -0.8, 0.4]),
        (fl.Threshold(0.1), [1.0, -1.0, 0.5]),  # below 1: as static
    ],
)
def test_by_hand(rule, expected):
    assert_close(combine(fl.CFG(2.0) | rule, C, U), torch.tensor([expected]))


@given(pairs(), scales, shares, st.floats(1, 5))
def test_result_is_in_range(cu, w, p, ceiling):
    if w == 1:
        return
    out = combine(fl.CFG(w) | fl.Threshold(p, ceiling), *cu)
    # numbers up to 400 are added and taken away: their rounding is what is left
    assert out.abs().max() <= 1 + 1e-12


@given(pairs(magnitude=0.25), st.floats(-1, 2), shares)
def test_in_range_already_is_unchanged_to_the_bit(cu, w, p):
    plain = fl.combine(fl.CFG(w) | fl.Rescale(0.0), dict(zip(("cond", "null"), cu, strict=True)))
    assert plain.abs().max() <= 1
    for rule in (fl.Threshold(p), fl.Threshold(ceiling=1.0)):
        assert torch.equal(combine(fl.CFG(w) | rule, *cu), plain)


@given(pairs(), scales)
def test_largest_value_divides(cu, w):
    if w == 1:
        return
    plain = combine(fl.CFG(w), *cu)
    largest = plain.abs().amax(1, keepdim=True).clamp(min=1)
    out = combine(fl.CFG(w) | fl.Threshold(1.0), *cu)
    assert_close(out, plain / largest, rtol=1e-10, atol=1e-12)


@given(pairs(), scales, shares)
def test_static_is_a_ceiling_of_one(cu, w, p):
    if w == 1:
        return
    out = combine(fl.CFG(w) | fl.Threshold(p, ceiling=1.0), *cu)
    assert_close(out, combine(fl.CFG(w), *cu).clamp(-1, 1), rtol=1e-10, atol=1e-12)


@given(pairs(size=7), shares)
def test_quantile_is_torch_s(cu, p):
    expected = torch.quantile(cu[0].abs(), p, dim=1)
    assert_close(quantile(cu[0].abs(), p), expected, rtol=1e-12, atol=1e-12)


def test_large_batches_have_a_quantile():
    x = torch.arange(2**24 + 1.0)[None]
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.5, dim=1)
    assert quantile(x, 0.5).item() == 2**23


def test_sample_without_guidance_is_left_alone():
    c, u = 3 * torch.ones(2, 4), torch.zeros(2, 4)
    out = combine(fl.CFG((1.0, 2.0)) | fl.Threshold(), c, u)
    assert_close(out, torch.tensor([[3.0] * 4, [1.0] * 4]))


@pytest.mark.parametrize("ceiling", [1.0, 1.5, 100.0])
def test_equals_diffusers_schedulers(ceiling):
    from diffusers import DDIMScheduler

    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 3, 2, 8, 8, generator=generator, dtype=torch.float64)
    scheduler = DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=ceiling
    )
    theirs = scheduler._threshold_sample(u + 3 * (c - u))
    out = combine(fl.CFG(3.0) | fl.Threshold(0.9, ceiling), c, u)
    assert_close(out, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "value"), [("p", 1.5), ("ceiling", 0.5)])
def test_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=rf"threshold: {name} must be in .+, got {value}"):
        fl.Threshold(**{name: value})
