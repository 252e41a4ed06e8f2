"""The power-tilted density: Gaussians in closed form, mixtures by two independent numerics."""

import math

import pytest
import torch
from torch.testing import assert_close

from fairlead.exact import GaussianMixture, GaussianPair, TiltedDensity, tilted_samples
from fairlead.schedules import Level

# class 0 left, class 1 right, unequal weights
MIXTURE = GaussianMixture(
    [[-0.6, -1.0], [-0.6, 1.0], [0.6, -1.0], [0.6, 1.0], [1.0, 0.0]],
    0.3,
    [1.4, 0.6, 1.0, 1.0, 1.0],
    [0, 0, 1, 1, 1],
)


@pytest.fixture(scope="module")
def tilted():
    return TiltedDensity(MIXTURE, 0, 3.0)


@pytest.mark.parametrize("w", [-0.5, 0.0, 0.5, 1.0, 3.0, 8.0])
def test_gaussians(w):
    tilted = TiltedDensity(GaussianPair(), 0, w)
    v = 2 / (1 + w)
    # w = -0.5 has deviation 2, so its 10-deviation border cuts off e^-25 of the mass
    tol = 1e-9 if w >= 0 else 1e-6
    assert tilted.cov.item() == pytest.approx(v, rel=tol)
    assert tilted.mean.item() == pytest.approx(0, abs=1e-12)
    # log Z = log sqrt(2 pi v) - (1-w)/2 log(4 pi) - w/2 log(2 pi)
    log_z = (math.log(v) - (1 - w) * math.log(2)) / 2
    assert tilted.log_normaliser == pytest.approx(log_z, abs=tol)
    assert tilted.entropy == pytest.approx(math.log(2 * math.pi * math.e * v) / 2, abs=1e-5)
    assert tilted.error < 1e-9 + tol


def test_noise_level_tilts_both_densities():
    level = Level(0.5, 0.8, 0.6)
    tilted = TiltedDensity(GaussianPair(), 0, 3.0, level)
    u, c = 0.64 * 2 + 0.36, 1.0
    assert tilted.cov.item() == pytest.approx(1 / (-2 / u + 3 / c), rel=1e-9)


def test_known_numbers_in_the_plane(tilted):
    assert tilted.error < 1e-9
    # three published digits; an indicator on a grid is good to half a cell
    assert tilted.expect(lambda x: x[:, 1] < 0).item() == pytest.approx(0.715, abs=0.01)
    assert tilted.mean[0].item() == pytest.approx(-0.821, abs=5e-4)


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_ends_are_the_densities_themselves(w):
    tilted = TiltedDensity(MIXTURE, 0, w)
    mean, cov = MIXTURE.moments(0 if w else None)
    assert tilted.log_normaliser == pytest.approx(0, abs=1e-9)
    assert_close(tilted.mean, mean, rtol=1e-9, atol=1e-9)
    assert_close(tilted.cov, cov, rtol=1e-9, atol=1e-9)


def test_score_is_the_gradient_on_clean_data():
    tilted = TiltedDensity(MIXTURE, 0, 2.5, points=51)
    x = torch.randn(5, 2, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(tilted.log_density(x).sum(), x)
    assert_close(tilted.score(x.detach()), slope, rtol=1e-9, atol=1e-9)


def test_importance_sampling_agrees_with_the_grid(tilted):
    drawn = tilted_samples(MIXTURE, 0, 3.0, 40000, torch.Generator().manual_seed(0))
    assert 0.1 < drawn.ess < 1
    assert drawn.weights.sum().item() == pytest.approx(1)
    mean = drawn.weights @ drawn.samples
    deviation = (tilted.cov.diagonal() / (40000 * drawn.ess)).sqrt()
    assert ((mean - tilted.mean).abs() < 5 * deviation).all()
    assert tilted_samples(MIXTURE, 0, 1.0, 100).ess == pytest.approx(1)


def test_samples_of_the_grid(tilted):
    x = tilted.sample(40000, torch.Generator().manual_seed(0))
    deviation = (tilted.cov.diagonal() / 40000).sqrt()
    assert ((x.mean(0) - tilted.mean).abs() < 5 * deviation).all()
    assert_close(x.T.cov(), tilted.cov, atol=0.02, rtol=0)


def test_error_shows_a_coarse_grid():
    fine, coarse = (TiltedDensity(MIXTURE, 0, 3.0, points=n) for n in (301, 31))
    assert fine.error < 1e-9 < 1e-3 < coarse.error
    assert abs(coarse.log_normaliser - fine.log_normaliser) < coarse.error


def test_refusals():
    with pytest.raises(ValueError, match=r"integrable, got -1\.0"):
        TiltedDensity(GaussianPair(), 0, -1.0)
    with pytest.raises(ValueError, match="use tilted_samples"):
        TiltedDensity(GaussianMixture(torch.zeros(1, 3), 1.0), 0, 1.0)
    with pytest.raises(ValueError, match="points must be at least 3"):
        TiltedDensity(MIXTURE, 0, 1.0, points=2)


def test_box_and_narrowest_by_hand():
    m = GaussianMixture([[0.0, 0.0], [4.0, 1.0]], [[1.0, 4.0], [0.25, 1.0]])
    low, high = m.box(2.0)
    assert low.tolist() == [-2, -4]
    assert high.tolist() == [5, 4]
    low, high = m.box(1.0, Level(0.5, 0.5, 0.0))
    assert low.tolist() == [-0.5, -1]
    assert high.tolist() == [2.25, 1]
    assert m.narrowest() == 0.5
    assert m.narrowest(Level(0.5, 1.0, 1.2)) == pytest.approx(1.3)
    pair = GaussianPair(4.0, 1.0)
    assert [end.item() for end in pair.box(3.0)] == [-6, 6]
    assert pair.narrowest(Level(0.5, 0.5, 1.2)) == pytest.approx(1.3)
