"""Guidance interval: its ends in every unit, per step and per evaluation, and its cost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Context
from fairlead.testing import tiny_denoiser

EDM, VP = fl.schedules.EDM(), fl.schedules.VP("cosine")
LABEL = {"label": [3, 5]}


def on(interval, schedule, sigma, *, step=0, steps=10, start=None):
    run = fl.Run(steps=steps)
    run.step = step
    ctx = Context(torch.zeros(1, 1), at(schedule, sigma), run, start=at(schedule, start or sigma))
    return interval.weight(3.0, ctx) == 3.0


def at(schedule, sigma):
    return schedule.level_at(-2 * math.log(sigma))


@pytest.mark.parametrize(
    ("sigma", "inside"), [(0.19, False), (0.191, True), (1.0, True), (1.61, True), (1.611, False)]
)
def test_sigma_is_open_below_and_closed_above(sigma, inside):
    interval = fl.Interval(0.19, 1.61, unit="sigma")
    assert on(interval, EDM, sigma) is inside
    if sigma not in (0.19, 1.61):  # another schedule hits the ends up to rounding only
        assert on(interval, VP, sigma) is inside  # sigma/alpha, so the same in any schedule


@given(st.floats(0.01, 50), st.floats(0.01, 50), st.floats(0.01, 50))
def test_log_snr_is_the_same_interval_as_sigma(a, b, sigma):
    low, high = sorted((a, b))
    if min(abs(sigma / low - 1), abs(sigma / high - 1)) < 1e-9:
        return  # on an end the two units round differently
    by_sigma = fl.Interval(low, high, unit="sigma")
    by_snr = fl.Interval(-2 * math.log(high), -2 * math.log(low), unit="log_snr")
    assert on(by_sigma, EDM, sigma) == on(by_snr, EDM, sigma) == (low < sigma <= high)


@pytest.mark.parametrize(("step", "inside"), [(1, False), (2, True), (7, True), (8, False)])
def test_fraction_is_closed_below_and_open_above(step, inside):
    assert on(fl.Interval(0.2, 0.8), EDM, 1.0, step=step) is inside


def test_whole_noise_lies_above_every_finite_sigma():
    flow = fl.schedules.RectifiedFlow()
    run = fl.Run(steps=2)
    ctx = Context(torch.zeros(1, 1), flow.level(1.0), run)  # alpha = 0: sigma/alpha = inf
    assert fl.Interval(0.0, 1e9, unit="sigma").weight(3.0, ctx) == 0.0
    assert fl.Interval(0.0, math.inf, unit="sigma").weight(3.0, ctx) == 3.0


@pytest.mark.parametrize("unit", ["fraction", "sigma", "log_snr"])
def test_whole_and_empty_intervals(unit):
    d = tiny_denoiser()
    whole = {"fraction": (0, 1), "sigma": (0, math.inf), "log_snr": (-math.inf, math.inf)}[unit]
    for ends, plain in ((whole, "cfg(3)"), ((0.5, 0.5), "none")):
        guide = fl.CFG(3.0) | fl.Interval(*ends, unit=unit)
        out, same = (fl.sample(d, LABEL, guide=g, steps=4) for g in (guide, plain))
        assert torch.equal(out.x, same.x)
        assert torch.equal(out.nfe, same.nfe)


def test_per_step_and_per_evaluation_in_a_two_stage_solver():
    grid = [level.t for level in EDM.grid(8)]
    low, high = (grid[4] + grid[5]) / 2, grid[2]  # steps 2, 3, 4 begin inside
    cost = {}
    for per in ("step", "evaluation"):
        guide = fl.CFG(3.0) | fl.Interval(low, high, unit="sigma", per=per)
        out = fl.sample(tiny_denoiser(), LABEL, guide=guide, steps=8)
        cost[per] = [len(e.wanted) for e in out.report.entries]
        assert out.nfe.tolist() == [sum(cost[per])] * 2
    # two evaluations a step, one in the last
    assert cost["step"] == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1]
    # step 1 ends on the upper end; the second stage of step 4 lies below the lower one
    assert cost["evaluation"] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]


def test_levels_that_differ_between_samples():
    c, u, x = torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(3, 2)
    out = fl.combine(
        fl.CFG(3.0) | fl.Interval(0.5, 2.0, unit="sigma"),
        {"cond": c, "null": u},
        x=x,
        t=torch.tensor([0.4, 1.0, 3.0]),
        schedule=EDM,
    )
    assert_close(out, torch.tensor([[1.0, 1.0], [3.0, 3.0], [1.0, 1.0]]))


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"interval: low must be at most high = 0\.2, got 0\.8"):
        fl.Interval(0.8, 0.2)
    with pytest.raises(ValueError, match="interval: unit must be one of fraction, sigma, log_snr"):
        fl.Interval(0.1, 0.8, unit="snr")
    with pytest.raises(ValueError, match="interval: low must be in"):
        fl.Interval(float("nan"), 0.8)
