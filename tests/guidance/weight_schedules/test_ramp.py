"""Ramps: by hand, mirror images, and the two papers that are settings of one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fairlead as fl
from fairlead.guidance.context import Context
from fairlead.testing import tiny_denoiser

ends = st.floats(-2, 20)


def weights(ramp, w, steps=21):
    """The effective `w` at each step."""
    run = fl.Run(steps=steps)
    ctx = Context(torch.zeros(1, 1), None, run)
    made = []
    for run.step in range(steps):
        made.append(1 + ramp.weight(w - 1, ctx))
    return made


def test_by_hand():
    falling = weights(fl.Ramp(2.0, 0.0), 3.0)
    assert [falling[0], falling[5], falling[10], falling[20]] == [5, 4, 3, 1]
    assert weights(fl.Ramp(2.0, 0.0, power=2.0), 3.0)[10] == 1 + 2 * (2 - 2 / 4)
    assert weights(fl.Ramp(4.0, 1.0), 2.0, steps=1) == [5.0]


@given(ends, ends)
def test_goes_from_one_scale_to_the_other(a, b):
    w = weights(fl.Ramp(a - 1, b - 1), 2.0)
    assert [w[0], w[10], w[20]] == pytest.approx([a, (a + b) / 2, b], abs=1e-12)
    assert weights(fl.Ramp(b - 1, a - 1), 2.0) == pytest.approx(w[::-1], abs=1e-12)


@given(ends)
def test_equal_ends_are_constant(w):
    assert weights(fl.Ramp(1.0, 1.0), w) == [1 + (w - 1)] * 21
    out = weights(fl.Ramp(2.0, 0.0), w)  # the same curve under its other name
    assert out == pytest.approx(weights(fl.Curve("inverse_linear"), w), abs=1e-12)


def test_factor_zero_costs_nothing():
    out = fl.sample(
        tiny_denoiser(), {"label": [1]}, guide="cfg(3) | ramp(2, 0)", steps=5, sampler="ddim"
    )
    assert out.nfe.tolist() == [1 + 4 * 2]


@pytest.mark.parametrize("off", [0, 2, 3, 4])
def test_scales_of_a_token_pyramid(off):
    """`l = (1 + k r) l_c - k r l_u` with `r = i/(K-1)` before scale `off`, `l_c` from there on."""
    k, scales = 6.0, 4
    guide = fl.CFG(1 + k) | fl.Ramp(0.0, 1.0) | fl.Interval(0.0, off / scales)
    run = fl.Run(steps=scales, check=False, record=False)
    noise = torch.Generator().manual_seed(0)
    for i in range(scales):
        lc, lu = torch.randn(2, 3, 5, generator=noise, dtype=torch.float64)
        null = {"null": lu} if 0 < i < off else {}  # without guidance it is not asked for
        shift = torch.randn(3, 1, generator=noise).double()  # per position: no effect
        out = fl.combine(guide, {"cond": lc + shift, **null}, run=run, domain="logprob")
        r = i / (scales - 1) if i < off else 0.0
        torch.testing.assert_close(out, torch.log_softmax((1 + k * r) * lc - k * r * lu, -1))


def test_errors():
    with pytest.raises(ValueError, match=r"ramp: power must be in \(0, inf\), got 0"):
        fl.Ramp(1.0, 2.0, power=0.0)
    with pytest.raises(ValueError, match="ramp: last must be in"):
        fl.Ramp(1.0, float("inf"))
