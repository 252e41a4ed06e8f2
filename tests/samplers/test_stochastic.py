"""Stochastic samplers and predictor-corrector guidance: exact variances, no sampling but once."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from fairlead.samplers import PCG, get
from fairlead.schedules import EDM, DiscreteVP, Level

T1 = [
    Level(math.sqrt(u), 1.0, math.sqrt(u))
    for u in [*(400.0 * (1e-5 / 400.0) ** (i / 1499) for i in range(1500)), 0.0]
]
"""1500 log-spaced variances from 400 to 1e-5, then clean data."""


def guided(w):
    """`p = N(0, 2)`, `p(.|c) = N(0, 1)`: guided at `1 + gain (w - 1)`."""

    def predict(x, level, gain=1.0):
        a, v = level.alpha, level.sigma**2
        cond, free = a * x / (a**2 + v), 2 * a * x / (2 * a**2 + v)
        return cond + gain * (w - 1) * (cond - free)

    return predict


def end_variance(lab, text, w, levels, draws=1):
    """Scalar recursion `V <- f^2 V + g^2`, each step's factors from unit probes."""
    rule = get(text)
    v = 2 * levels[0].alpha ** 2 + levels[0].sigma ** 2
    zero = torch.zeros(1, dtype=torch.float64)
    for s, t in pairwise(levels):
        _, var = lab.moments(rule, guided(w), [s, t], math.sqrt(v), zero, draws, takes_gain=True)
        v = var.item()
    return v


@pytest.mark.parametrize(
    ("langevin", "value"),
    [(1, 0.3875), (2, 0.356), (5, 0.341), pytest.param(20, 0.335, marks=pytest.mark.slow)],
)
def test_pcg_on_t1(lab, langevin, value):
    """w = 3: the SDE value at `K = 1`, then towards the tilted density's 1/3 for `w' = 5`."""
    out = end_variance(lab, f"pcg({langevin})", 3.0, T1, langevin)
    assert out == pytest.approx(value, abs=5e-4)  # at K = 1 the limit, else a table of three digits


@pytest.mark.parametrize("w", [2.0, 3.0])
def test_pcg_is_ddpm_guidance_on_the_discrete_chain(lab, w):
    """The chain of 1000 steps: both differ from the limit, and from each other, by 1/1000."""
    levels = DiscreteVP.linear().grid(1000)
    limit = (2 - 2 ** (2 - 2 * w)) / (2 * w - 1)
    ddpm = end_variance(lab, "ddpm('large')", w, levels)
    pcg = end_variance(lab, "pcg", w, levels)
    assert ddpm == pytest.approx(limit, abs=1e-3)
    assert pcg == pytest.approx(limit, abs=1e-3)
    assert pcg == pytest.approx(ddpm, abs=1e-3)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 3.0])
def test_stochastic_guidance_ends_at_the_closed_form(lab, w):
    """`(2 - 2^(2-2w)) / (2w - 1)`; the grid's first-order error is below 0.8% of it."""
    value = (2 - 2 ** (2 - 2 * w)) / (2 * w - 1)
    assert end_variance(lab, "euler_ancestral", w, T1) == pytest.approx(value, rel=8e-3)


def test_deterministic_guidance_ends_at_another_value(lab):
    """From `t = 400` the ODE ends at `2^(1-w) (402/401)^w`, half the SDE's variance at w = 3."""
    value = 2.0 ** (1 - 3) * (402 / 401) ** 3
    for text in ("heun", "dpmpp_2s"):
        rule = get(text)
        factor = 1.0
        for s, t in pairwise(T1):
            x = torch.ones(1, 1, dtype=torch.float64)
            factor *= lab.drive(rule, guided(3.0), [s, t], x, EDM()).item()
        # the last level's variance of 1e-5, and second-order errors of 1499 steps
        assert 402 * factor**2 == pytest.approx(value, rel=1e-4)


def test_pcg_step_is_the_chain_form(lab):
    """S003 steps 1 to 3: `beta_i = 1 - abar_s/abar_t`, `score = -eps / sqrt(1 - abar)`."""
    schedule = DiscreteVP.linear()
    s, t = schedule.level(500.0), schedule.level(499.0)
    beta = 1 - s.alpha**2 / t.alpha**2
    x = lab.z
    model = lab.Driven(guided(2.0), schedule, 1, takes_gain=True)
    c = guided(2.0)(x, s, 0.0)
    y = t.alpha * c + t.sigma * (x - s.alpha * c) / s.sigma
    eps = (y - t.alpha * guided(2.0)(y, t, 2.0)) / t.sigma
    expected = y - beta / 2 * eps / t.sigma + math.sqrt(beta) * model.noise(y)
    out = lab.drive("pcg", guided(2.0), [s, t], x, schedule, takes_gain=True)
    assert_close(out, expected, rtol=1e-11, atol=1e-11)


def test_pcg_step_is_the_variance_exploding_form(lab):
    s, t = EDM().level(2.0), EDM().level(1.9)
    du = 2.0**2 - 1.9**2
    model = lab.Driven(guided(2.0), EDM(), 1, takes_gain=True)
    y = lab.drive("ddim", lambda x, lv: guided(2.0)(x, lv, 0.0), [s, t], lab.z)
    score = 2 * -y / (1 + t.sigma**2) * 1.5 - 2 * -y / (2 + t.sigma**2)  # w' = 3
    expected = y + du / 2 * score + math.sqrt(du) * model.noise(y)
    out = lab.drive("pcg", guided(2.0), [s, t], lab.z, EDM(), takes_gain=True)
    assert_close(out, expected, rtol=1e-11, atol=1e-11)


def test_pcg_stays_bounded_on_coarse_grids(lab):
    """The cap: without it the first Langevin steps diverge, to a variance of 6420."""
    levels = EDM().grid(8)
    capped = end_variance(lab, "pcg", 3.0, levels)
    free = end_variance(lab, "pcg(max_step=inf)", 3.0, levels)
    assert 0.2 < capped < 0.6
    assert free > 1000


@pytest.mark.parametrize("levels", [T1, DiscreteVP.linear().grid(1000)], ids=["t1", "chain"])
def test_the_cap_does_not_touch_fine_grids(lab, levels):
    capped, free = (end_variance(lab, t, 3.0, levels) for t in ("pcg", "pcg(max_step=inf)"))
    assert capped == pytest.approx(free, abs=1e-4)  # the chain's last step alone is capped


def test_without_corrector_it_is_conditional_ddim(lab, schedule):
    levels = schedule.grid(6)
    x = levels[0].sigma * lab.z

    def conditional(x, lv):
        return guided(4.0)(x, lv, 0.0)

    out = lab.drive(PCG(0), guided(4.0), levels, x, schedule, takes_gain=True)
    assert torch.equal(out, lab.drive("ddim", conditional, levels, x, schedule))


@pytest.mark.parametrize("text", ["ddpm", "ddpm(0.5)", "ddim(eta=1.0)", "dpmpp_2m_sde"])
def test_mean_of_the_reverse_process_is_exact(lab, schedule, text):
    """On Gaussians `E[x_t | x_s]` is reached at any step size: the mean is linear in `D`."""
    levels = [schedule.level_at(v) for v in (-4.0, -1.0, 1.5, 5.0)]
    s, t = levels[0], levels[-1]
    z = torch.ones(3, dtype=torch.float64)
    start = s.alpha * lab.data.mu + z
    v = [lab.data.deviation(lv) ** 2 for lv in levels]
    mean, _ = lab.moments(text, lab.data, levels, z, start, 3, schedule)
    expected = t.alpha * lab.data.mu + s.alpha / t.alpha * v[-1] / v[0] * z
    assert_close(mean, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("text", ["ddpm", "dpmpp_2m_sde", "dpmpp_2s(eta=1.0)", "heun(churn=10)"])
def test_draws_have_the_computed_variance(lab, schedule, text):
    """The one test that samples: 20000 draws against the exact variance, 5 standard errors."""
    levels = schedule.grid(12)
    mean = levels[0].alpha * lab.data.mu
    start = lab.data.deviation(levels[0])
    _, var = lab.moments(text, lab.data, levels, start, mean, 12, schedule)
    generator = torch.Generator().manual_seed(2)
    model = lab.Driven(lab.data, schedule, 12)
    model.noise = lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)
    x = mean + start * model.noise(torch.empty(20000, 3, dtype=torch.float64))
    rule = get(text)
    for i, (s, t) in enumerate(pairwise(levels)):
        model.step = i
        x = rule.step(model, x, s, t)
    assert_close(x.var(0) / var, torch.ones_like(var), rtol=0, atol=5 * math.sqrt(2 / 20000))
