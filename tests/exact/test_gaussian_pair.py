"""The Gaussian pair: end variances of guidance in closed form, and by recursion."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch.testing import assert_close

from fairlead.exact import (
    GaussianMixture,
    GaussianPair,
    ddim_variance,
    ddpm_variance,
    euler_ode_variance,
    euler_sde_variance,
    t1_levels,
)
from fairlead.schedules import EDM, VP, Level

PAIR = GaussianPair()
few = settings(max_examples=30, deadline=None, derandomize=True)
positive = st.floats(0.2, 5)


def test_variances_at_three():
    assert PAIR.ode_variance(3) == pytest.approx(0.25, abs=1e-15)
    assert PAIR.sde_variance(3) == pytest.approx(0.3875, abs=1e-15)
    assert PAIR.tilted_variance(3) == pytest.approx(0.5, abs=1e-15)
    assert PAIR.sde_variance(0.5) == pytest.approx(2 * math.log(2), abs=1e-15)


@given(st.floats(0.01, 8))
@few
def test_t1_closed_forms(w):
    assert PAIR.ode_variance(w) == pytest.approx(2 ** (1 - w))
    assert PAIR.tilted_variance(w) == pytest.approx(2 / (1 + w))
    if abs(w - 0.5) > 1e-3:
        # this form of it cancels near 1/2, ours does not
        assert PAIR.sde_variance(w) == pytest.approx((2 - 2 ** (2 - 2 * w)) / (2 * w - 1))


@given(positive, positive, st.floats(-0.5, 4))
@few
def test_variances_solve_their_equations(u, c, w):
    pair = GaussianPair(u, c)

    def a(t):
        return (1 - w) / (u + t) + w / (c + t)

    # V(0) = int_0^inf exp(-2 int_0^t a) dt for the SDE, in s = t / (1 + t)
    def integrand(s):
        t = s / (1 - s)
        return (u / (u + t)) ** (2 - 2 * w) * (c / (c + t)) ** (2 * w) / (1 - s) ** 2

    value, _ = integrate.quad(integrand, 0, 1, epsabs=1e-12, epsrel=1e-10)
    assert pair.sde_variance(w) == pytest.approx(value, rel=1e-8)
    # log V(0) = log V(T) - int a dt for the ODE, with V(T) = T up to 1e-8
    top = 1e9
    spent, _ = integrate.quad(lambda r: a(math.exp(r) - 1) * math.exp(r), 0, math.log(1 + top))
    assert pair.ode_variance(w) == pytest.approx(top * math.exp(-spent), rel=1e-5)


@pytest.mark.parametrize("w", [0, 1])
def test_unguided_variances_are_the_truth(w):
    true = [PAIR.variance, PAIR.cond_variance][w]
    for value in (PAIR.ode_variance(w), PAIR.sde_variance(w), PAIR.tilted_variance(w)):
        assert value == pytest.approx(true, abs=1e-15)


def test_equal_variances_leave_nothing_to_guide():
    pair = GaussianPair(1.5, 1.5)
    for w in (0.5, 3.0):
        assert pair.sde_variance(w) == 1.5
        assert pair.tilted_variance(w) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("langevin", "expected"), [(0, 0.389), (1, 0.430), (5, 0.472), (20, 0.491)]
)
def test_langevin_moves_towards_the_tilted_density(langevin, expected):
    end = euler_sde_variance(PAIR, 3, t1_levels(), start=402.0, langevin=langevin)
    assert end == pytest.approx(expected, abs=5e-4)  # three published digits


def test_euler_ode():
    assert euler_ode_variance(PAIR, 3, t1_levels(), start=402.0) == pytest.approx(0.256, abs=5e-4)
    exact = 2**-2 * (402 / 401) ** 3
    fine = euler_ode_variance(PAIR, 3, t1_levels(100000), start=402.0)
    assert fine == pytest.approx(exact, rel=1e-3)  # first order: 1500 steps are 2 % off


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0, lambda level: 3.0 if level.sigma < 1 else 1.0])
def test_recursions_are_what_samplers_do(w):
    """Each recursion against the same update applied to numbers: x = 1 for the factor."""
    levels = EDM().grid(12)
    denoiser = PAIR.denoiser(EDM())
    x = torch.ones(1, 1, dtype=torch.float64)
    for t, s in pairwise(levels):
        at = w(t) if callable(w) else w
        free, own = denoiser(x, t), denoiser(x, t, {"label": [0]})
        x = (d := free + at * (own - free)) + s.sigma / t.sigma * (x - d)
    expected = x.item() ** 2 * (2 + 80.0**2)
    assert ddim_variance(PAIR, w, levels) == pytest.approx(expected, rel=1e-12)


def test_fine_grids_reach_the_closed_forms():
    levels = [Level(u, 1.0, u) for u in torch.logspace(4, -4, 20001, dtype=torch.float64).tolist()]
    levels.append(Level(0.0, 1.0, 0.0))
    # first order in the log step of 1e-3
    assert ddim_variance(PAIR, 3, levels) == pytest.approx(0.25, rel=5e-3)
    assert ddpm_variance(PAIR, 3, levels) == pytest.approx(0.3875, rel=5e-3)
    assert euler_sde_variance(PAIR, 3, levels) == pytest.approx(0.3875, rel=5e-3)


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_ancestral_sampling_is_exact_for_vp_in_the_limit(w):
    end = ddpm_variance(PAIR, w, VP().grid(4000))
    assert end == pytest.approx(2 - w, rel=2e-2)


def test_one_ancestral_step_by_hand():
    # from sigma 2 to 1 at w = 0: D = x/3, q = 3, mean (x + 3 x/3)/4 = x/2, variance 3/4
    levels = [Level(2.0, 1.0, 2.0), Level(1.0, 1.0, 1.0)]
    assert ddpm_variance(PAIR, 0, levels) == pytest.approx(6 / 4 + 3 / 4)


def test_recursions_refuse_other_levels():
    with pytest.raises(ValueError, match="variance exploding"):
        euler_ode_variance(PAIR, 3, VP().grid(4))


@few
@given(positive, positive, st.floats(0.01, 1), st.floats(0.05, 3))
def test_distribution_is_a_one_component_mixture(u, c, alpha, sigma):
    pair, level = GaussianPair(u, c), Level(0.5, alpha, sigma)
    x = torch.tensor([[-2.0], [0.3], [1.0]], dtype=torch.float64)
    label = torch.tensor([0, -1, 1])
    one = {0: GaussianMixture([0.0], c), -1: GaussianMixture([0.0], u)}
    one[1] = one[-1]
    for name in ("log_density", "score", "x0"):
        each = [getattr(one[k], name)(x[i : i + 1], level) for i, k in enumerate([0, -1, 1])]
        # atol for x0 = 0 at tiny alpha
        assert_close(getattr(pair, name)(x, level, label), torch.cat(each), rtol=1e-9, atol=1e-12)


def test_ends_of_the_noise():
    x = torch.randn(3, 1, dtype=torch.float64)
    assert torch.equal(PAIR.x0(x, Level(0.0, 1.0, 0.0), 0), x)
    assert torch.equal(PAIR.x0(x, Level(1.0, 0.0, 1.0), 0), 0 * x)


def test_samples():
    g = torch.Generator().manual_seed(0)
    label = torch.tensor([0, -1]).repeat(20000)
    x = PAIR.sample(40000, label, g)
    for c, v in ((0, 1.0), (-1, 2.0)):
        # variance of the sample variance is 2 v^2 / n; five of its deviations
        assert x[label == c].var().item() == pytest.approx(v, abs=5 * v * (2 / 20000) ** 0.5)


def test_bad_values():
    with pytest.raises(ValueError, match="cond_variance must be in"):
        GaussianPair(2.0, 0.0)
    with pytest.raises(ValueError, match="integrable, got -2"):
        PAIR.tilted_variance(-2)
