"""Reflected diffusion: the kernel, the exact mixture, the sampler and the loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture, ReflectedMixture
from fairlead.reflection import eigenfunctions, heat_kernel, images, reflect
from fairlead.schedules import Level
from fairlead.training.reflected import reflected_loss

GRID = torch.linspace(0, 1, 201, dtype=torch.float64)
MIX = ReflectedMixture([0.12, 0.35, 0.8], 0.06, labels=[0, 1, 1])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20))
def test_reflection_folds_and_rests(values):
    x = torch.tensor(values, dtype=torch.float64)
    y = reflect(x)
    assert ((y >= 0) & (y <= 1)).all()
    assert torch.equal(reflect(y), y)
    assert_close(reflect(-x), y)
    assert_close(reflect(x + 2), y, rtol=0, atol=1e-13)


def test_both_series_agree_at_the_switch():
    x0 = torch.tensor([[0.0], [0.13], [0.5], [1.0]], dtype=torch.float64)
    near, far = (f(GRID, x0, 0.02) for f in (images, eigenfunctions))
    assert_close(near[0].exp(), far[0].exp(), rtol=0, atol=1e-9)
    # the score divides by p, which is 1e-11 at the far wall: compare where there is mass
    seen = near[0] > -8
    assert_close(near[1][seen], far[1][seen], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.4, 3.0])
def test_the_kernel_is_a_density_whose_slope_vanishes_at_the_walls(sigma):
    x = torch.linspace(0, 1, 4001, dtype=torch.float64)
    log_p, score = heat_kernel(x, torch.tensor(0.2, dtype=torch.float64), sigma**2)
    assert abs(torch.trapezoid(log_p.exp(), x) - 1) < 1e-6
    numeric = torch.gradient(log_p, spacing=(x,))[0]
    seen = log_p > -20  # the differences of a grid say little about slopes of hundreds
    seen[[0, -1]] = False
    assert_close(score[seen], numeric[seen], rtol=2e-3, atol=2e-2)
    assert_close(score[[0, -1]] * log_p[[0, -1]].exp(), torch.zeros(2).double(), rtol=0, atol=1e-6)


def test_uniform_noise_has_no_score():
    _, score = heat_kernel(GRID, torch.tensor(0.3, dtype=torch.float64), 25.0)
    assert score.abs().max() < 1e-12


def test_far_from_the_walls_it_is_the_gaussian_mixture():
    wide = GaussianMixture([0.45, 0.55], 0.03**2)
    folded = ReflectedMixture([0.45, 0.55], 0.03)
    x = torch.linspace(0.35, 0.65, 31, dtype=torch.float64)[:, None]
    level = Level(0.02, 1.0, 0.02)
    assert_close(folded.score(x, level), wide.score(x, level), rtol=1e-7, atol=1e-7)
    assert_close(folded.log_density(x, level), wide.log_density(x, level), rtol=1e-7, atol=1e-7)


def test_samples_follow_the_density():
    x = MIX.sample(20_000, 0, torch.Generator().manual_seed(0))
    assert abs(x.mean() - 0.12) < 0.005  # the fold moves 2.3 % of the mass by little
    assert abs((x < 0.06).double().mean() - _mass(MIX, 0.06)) < 0.015  # 4 standard errors


def _mass(p, end):
    x = torch.linspace(0, end, 2001, dtype=torch.float64)[:, None]
    return torch.trapezoid(p.log_density(x, label=0).exp(), x[:, 0]).item()


def draw(w, sampler, n=600, steps=120):
    schedule = fl.schedules.EDM(0.01, 5.0, spacing="exponential")
    return fl.sample(
        MIX.denoiser(schedule),
        {"label": torch.zeros(n, dtype=torch.long)},
        guide=f"cfg({w})",
        sampler=sampler,
        steps=steps,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("sampler", ["reflected", "reflected(ode=True)", "reflected(corrector=1)"])
def test_no_sample_leaves_at_any_scale(sampler):
    for w in (1.0, 8.0):
        x = draw(w, sampler, n=200, steps=60).x
        assert ((x >= 0) & (x <= 1)).all()


def test_the_class_is_sampled_without_guidance():
    x = draw(1.0, "reflected").x
    assert abs(x.mean() - 0.124) < 0.012  # 4 standard errors
    assert draw(1.0, "reflected(corrector=2)", n=2, steps=4).nfe.tolist() == [3 * 3 + 1] * 2


def test_other_schedules_are_refused():
    with pytest.raises(ValueError, match="reflected: the schedule must have alpha = 1"):
        fl.sample(MIX.denoiser(fl.schedules.VP()), {"label": [0]}, sampler="reflected", steps=3)


def test_the_loss_is_least_at_the_exact_score():
    """Data at one point: the kernel's own score has loss 0, others what they are off by."""
    x0, n = torch.full((500, 1), 0.2).double(), torch.randn(500, 1).double()
    sigma = torch.full((500,), 0.3).double()

    def exact(x, sigma):
        return heat_kernel(x, torch.tensor(0.2).double(), 0.09)[1]

    assert reflected_loss(exact, x0, sigma, n) < 1e-12
    off = reflected_loss(lambda x, s: exact(x, s) + 2.0, x0, sigma, n)
    assert math.isclose(off.item(), 0.09 * 4 / 2, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReflectedMixture([1.2], 0.1), r"means must be in \[0, 1\]"),
        (lambda: ReflectedMixture([0.2], 0.0), "deviation must be above 0, got 0.0"),
        (lambda: fl.samplers.Reflected(snr=0.0), "reflected: snr must be"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
