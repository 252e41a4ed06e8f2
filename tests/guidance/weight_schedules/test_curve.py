"""Weight curves: shapes by hand, their means, the floor, both readings."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Context
from fairlead.guidance.weight_schedules.curve import SHAPES
from fairlead.testing import tiny_denoiser

scales = st.floats(-2, 20)


def weights(curve, w, steps=21):
    """The effective `w` at each step."""
    run = fl.Run(steps=steps)
    ctx = Context(torch.zeros(1, 1), None, run)
    made = []
    for run.step in range(steps):
        made.append(1 + curve.weight(w - 1, ctx))
    return made


@pytest.mark.parametrize(
    ("shape", "first", "middle", "last"),
    [
        ("constant", 4, 4, 4),
        ("linear", 1, 4, 7),
        ("inverse_linear", 7, 4, 1),
        ("cosine", 1, 4, 7),
        ("sine", 7, 4, 1),
        ("valley", 7, 1, 7),
        ("peak", 1, 7, 1),
        ("powered_cosine", 1, 2.5, 4),
    ],
)
def test_by_hand(shape, first, middle, last):
    w = weights(fl.Curve(shape), 4.0)  # omega = 3 times 0, 1/2, 1 or 2
    assert [w[0], w[10], w[20]] == pytest.approx([first, middle, last])


def test_quarter_points_by_hand():
    assert weights(fl.Curve("cosine"), 4.0)[5] == pytest.approx(4 - 3 / math.sqrt(2))
    assert weights(fl.Curve("valley"), 4.0)[5] == pytest.approx(4.0)
    squared = fl.Curve("powered_cosine", power=2.0)
    assert weights(squared, 4.0)[10] == pytest.approx(1 + 1.5 * (1 - math.cos(math.pi / 4)))


@pytest.mark.parametrize("shape", ["linear", "inverse_linear", "cosine", "sine", "constant"])
@pytest.mark.parametrize("reading", ["A", "B"])
@given(scales)
def test_mean_is_the_constant(shape, reading, w):
    mean = sum(weights(fl.Curve(shape, reading=reading), w)) / 21
    assert mean == pytest.approx(w, abs=1e-12)


def test_mean_of_valley_and_peak_as_the_catalogue_has_it():
    assert sum(weights(fl.Curve("valley", reading="B"), 4.0)) / 21 == pytest.approx(4.19, abs=5e-3)
    assert sum(weights(fl.Curve("peak", reading="B"), 4.0)) / 21 == pytest.approx(3.81, abs=5e-3)


@given(scales)
def test_mirror_images(w):
    rising, falling = (weights(fl.Curve(s), w) for s in ("linear", "inverse_linear"))
    assert rising == pytest.approx(falling[::-1], abs=1e-12)
    assert [a + b for a, b in zip(rising, falling, strict=True)] == pytest.approx([2 * w] * 21)
    assert weights(fl.Curve("cosine"), w) == pytest.approx(
        weights(fl.Curve("sine"), w)[::-1], abs=1e-12
    )


@pytest.mark.parametrize("shape", list(SHAPES))
def test_scale_one_is_conditional_at_every_step(shape):
    assert weights(fl.Curve(shape), 1.0) == [1.0] * 21
    out = fl.sample(tiny_denoiser(), {"label": [1]}, guide=fl.CFG(1.0) | fl.Curve(shape), steps=4)
    assert out.nfe.tolist() == [7]


def test_floor_acts_on_what_is_scheduled():
    assert weights(fl.Curve("linear", floor=2.0), 4.0)[:2] == [3.0, 3.0]  # 1 + max(2, ...)
    assert weights(fl.Curve("linear", floor=2.0, reading="B"), 4.0)[:2] == [2.0, 2.0]
    assert weights(fl.Curve("linear", floor=0.0), 4.0) == weights(fl.Curve("linear"), 4.0)


def test_floor_per_sample():
    run = fl.Run(steps=3)
    run.step = 1
    w = torch.tensor([[0.5], [6.0]])
    out = fl.Curve("linear", floor=1.5).weight(w, Context(torch.zeros(2, 1), None, run))
    assert_close(out, torch.tensor([[1.5], [6.0]]))


def test_steps_without_weight_cost_nothing():
    out = fl.sample(
        tiny_denoiser(), {"label": [1]}, guide="cfg(3) | curve('peak')", steps=5, sampler="ddim"
    )
    assert out.nfe.tolist() == [2 + 3 * 2]  # the first and the last step have w = 1


def test_unknown_shape_is_named():
    with pytest.raises(ValueError, match=r"curve: shape must be one of .*did you mean 'linear'"):
        fl.Curve("liner")
    with pytest.raises(ValueError, match="curve: reading must be one of A, B"):
        fl.Curve("linear", reading="C")
    with pytest.raises(ValueError, match=r"curve: power must be in \(0, inf\), got 0"):
        fl.Curve("linear", power=0.0)
