"""Noise schedules: ends, inverse, published values, and every grid."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fairlead.schedules import (
    EDM,
    SPACINGS,
    VP,
    DiscreteVP,
    Level,
    RectifiedFlow,
    rescale_zero_terminal_snr,
)

SCHEDULES = {
    "linear": VP(),
    "scaled_linear": VP("scaled_linear"),
    "cosine": VP("cosine"),
    "edm": EDM(),
    "flow": RectifiedFlow(),
    "shifted": RectifiedFlow(shift=3.0),
    "ddpm": DiscreteVP.linear(),
    "latent": DiscreteVP.scaled_linear(),
    "zero_snr": DiscreteVP.scaled_linear(zero_terminal_snr=True),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@every
def test_time_zero_is_clean_data(schedule):
    level = schedule.level(0.0)
    assert (level.alpha, level.sigma, level.log_snr) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize("name", ["cosine", "flow", "shifted", "zero_snr"])
def test_full_noise_has_no_signal(name):
    schedule = SCHEDULES[name]
    level = schedule.level(schedule.t_max)
    assert (level.alpha, level.sigma, level.log_snr) == (0.0, 1.0, -math.inf)


@every
def test_time_inverts_log_snr(schedule):
    t = torch.linspace(schedule.t_min, 0.999 * schedule.t_max, 101, dtype=torch.float64)
    # DiscreteVP is linear in alpha between knots: 1e-4 of a rate at alpha near 1 loses digits
    assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-7, atol=1e-9 * schedule.t_max)


@every
def test_noise_rises_with_time(schedule):
    t = torch.linspace(0, schedule.t_max, 501, dtype=torch.float64)
    assert (schedule.sigma(t).diff() >= 0).all()
    assert (schedule.alpha(t).diff() <= 0).all()
    assert (schedule.log_snr(t[1:-1]).diff() < 0).all()


@pytest.mark.parametrize(
    "name", ["linear", "scaled_linear", "cosine", "ddpm", "latent", "zero_snr"]
)
def test_variance_is_preserved(name):
    t = torch.linspace(0, SCHEDULES[name].t_max, 301, dtype=torch.float64)
    total = SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2
    assert_close(total, torch.ones_like(t), rtol=1e-14, atol=0)


@every
def test_shape_and_dtype_are_kept(schedule):
    t = torch.full((2, 3), 0.5 * schedule.t_max)
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.network_time):
        value = function(t)
        assert value.shape == (2, 3)
        assert value.dtype == torch.float32


def test_values_by_hand():
    assert VP().level(1.0).alpha == pytest.approx(math.exp(-19.9 / 4 - 0.05))
    assert VP("scaled_linear", 0.85, 12.0).level(1.0).alpha == pytest.approx(
        # half the integral of (a + d t)^2 = (b0 + sqrt(b0 b1) + b1)/3
        math.exp(-(0.85 + math.sqrt(0.85 * 12) + 12) / 6)
    )
    s = 0.008
    top = math.cos(math.pi / 2 * (0.5 + s) / (1 + s)) / math.cos(math.pi / 2 * s / (1 + s))
    assert VP("cosine").level(0.5).alpha == pytest.approx(top)
    cases = [(EDM().level(3.0), 1.0, 3.0), (RectifiedFlow().level(0.25), 0.75, 0.25)]
    for level, alpha, sigma in cases:
        assert (level.alpha, level.sigma) == (alpha, sigma)
    assert DiscreteVP(double(0.1, 0.2)).level(2.0).alpha == pytest.approx(math.sqrt(0.9 * 0.8))
    assert Level(1.0, 0.6, 0.8).log_snr == pytest.approx(2 * math.log(0.75))
    assert Level(1.0, 0.6, 0.8).lam == pytest.approx(math.log(0.75))


def test_network_times():
    assert_close(EDM().network_time(double(2.0)), double(math.log(2) / 4))
    assert DiscreteVP.linear().network_time(double(1.0, 1000.0)).tolist() == [0.0, 999.0]
    assert RectifiedFlow(time_scale=1000.0).network_time(double(0.5)).tolist() == [500.0]
    assert VP(time_scale=999.0).network_time(double(1.0)).tolist() == [999.0]


@every
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_grids_fall_from_noise_to_clean_data(schedule, spacing, steps):
    grid = schedule.grid(steps, spacing)
    assert len(grid) == steps + 1
    assert (grid[-1].t, grid[-1].sigma) == (0.0, 0.0)
    times = [level.t for level in grid]
    assert all(a > b for a, b in pairwise(times))
    if spacing != "leading":
        assert times[0] == schedule.t_max
    short = schedule.grid(steps, spacing, final="t_min") if spacing in SPACINGS[3:] else None
    if short:
        assert len(short) == steps + 1
        assert short[-1].t == pytest.approx(schedule.t_min, rel=1e-6)


def test_karras_grid_is_the_papers():
    # sigma_i = (80^(1/7) + i/(N-1) (0.002^(1/7) - 80^(1/7)))^7
    expected = [
        (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)
    ]
    assert [level.sigma for level in EDM().grid(18)] == pytest.approx([*expected, 0.0])


def test_interval_of_the_catalogue_lies_on_steps_17_to_22():
    sigmas = [level.sigma for level in EDM().grid(32)]
    assert (sigmas[17], sigmas[22]) == pytest.approx((1.61, 0.283), rel=5e-3)


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
def test_log_grids_have_equal_steps(name):
    for spacing in ("exponential", "log_snr"):
        grid = SCHEDULES[name].grid(9, spacing)[:-1]
        start = 2 if name == "flow" else 1  # its first level, alpha = 0, has no finite log-SNR
        steps = torch.tensor([level.log_snr for level in grid[start - 1 :]]).double().diff()
        assert_close(steps, steps.mean().expand_as(steps), rtol=1e-5, atol=0)


def test_uniform_trailing_and_leading_by_hand():
    flow = RectifiedFlow()
    assert [level.t for level in flow.grid(4, "trailing")] == [1.0, 0.75, 0.5, 0.25, 0.0]
    uniform = [level.t for level in flow.grid(3, "uniform")]
    assert uniform == pytest.approx([1.0, 0.5005, 0.001, 0.0])
    chain = DiscreteVP.linear()
    assert [level.t for level in chain.grid(4, "trailing")] == [1000, 750, 500, 250, 0]
    assert [level.t for level in chain.grid(4, "leading")] == [751, 501, 251, 1, 0]


def test_shift_moves_the_grid_and_not_the_path():
    shifted = RectifiedFlow(shift=3.0)
    assert [level.t for level in shifted.grid(2)] == pytest.approx([1.0, 1.5 / 2.0, 0.0])
    assert shifted.level(0.5) == RectifiedFlow().level(0.5)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_chain_grids_equal_diffusers_timesteps(spacing, steps):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=0)
    theirs.set_timesteps(steps)
    ours = [level.t - 1 for level in DiscreteVP.linear().grid(steps, spacing)[:-1]]
    assert ours == theirs.timesteps.tolist()


def test_discrete_chain_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    kind = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for zero in (False, True):
        scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=zero, **kind)
        theirs = scheduler.alphas_cumprod.double()
        ours = DiscreteVP.scaled_linear(zero_terminal_snr=zero)
        # theirs is a product of 1000 factors in float32: 1000 x 6e-8, seen as 2e-5 at worst
        assert_close(ours.alphas[1:] ** 2, theirs, rtol=2e-4, atol=1e-6)


def test_zero_terminal_snr_identities():
    plain = DiscreteVP.scaled_linear()
    fixed = DiscreteVP.scaled_linear(zero_terminal_snr=True)
    assert fixed.alphas[-1] == 0
    assert fixed.alphas[1] == plain.alphas[1]
    again = rescale_zero_terminal_snr(fixed.alphas[1:])
    assert_close(again, fixed.alphas[1:], rtol=1e-14, atol=0)
    gap = plain.alphas[1:] - plain.alphas[-1]
    assert_close(fixed.alphas[1:], gap * plain.alphas[1] / gap[0], rtol=1e-12, atol=1e-15)


@given(st.floats(-15, 15))
def test_level_at_has_the_log_snr(log_snr):
    for schedule in (VP("cosine"), EDM(), RectifiedFlow()):
        assert schedule.level_at(log_snr).log_snr == pytest.approx(log_snr, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDM(sigma_min=3.0, sigma_max=2.0), r"EDM: sigma_min must be below sigma_max=2\.0"),
        (lambda: EDM(sigma_min=0.0), r"EDM: sigma_min must be in \(0, inf\), got 0"),
        (lambda: VP("lineer"), "VP: kind must be one of .*did you mean 'linear'"),
        (lambda: VP(beta_max=math.nan), "VP: beta_max must be in"),
        (lambda: RectifiedFlow(shift=0.0), "RectifiedFlow: shift must be in"),
        (lambda: DiscreteVP(double(0.1, 1.2)), r"betas must be a vector of numbers in \(0, 1\]"),
        (lambda: EDM().grid(0), "grid: steps must be at least 1, got 0"),
        (lambda: EDM().grid(3, "karas"), "grid: spacing must be one of .*did you mean 'karras'"),
        (lambda: DiscreteVP.linear(steps=10).grid(11), "steps must be at most 10, the chain"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_values_compare():
    assert EDM() == EDM()
    assert DiscreteVP.linear() == DiscreteVP.linear()
    assert DiscreteVP.linear() != DiscreteVP.scaled_linear()
    assert hash(DiscreteVP.linear()) == hash(DiscreteVP.linear())
