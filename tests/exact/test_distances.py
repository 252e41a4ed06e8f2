"""Distances: values by hand, closed forms for Gaussians, and intervals that mean something."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from fairlead.exact import GaussianMixture, energy_distance, mmd, nll, sliced_wasserstein


def normal(n, d=1, shift=0.0, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, dtype=torch.float64, generator=g)


def test_nll_is_the_entropy_of_true_samples():
    m = GaussianMixture([[0.0, 0.0]], [4.0])
    found = nll(m, m.sample(4000, generator=torch.Generator().manual_seed(0)))
    entropy = 1 + math.log(2 * math.pi) + math.log(4)
    assert found.low < entropy < found.high
    # -log p has deviation 1 in two dimensions
    assert found.high - found.low == pytest.approx(2 * 1.96 / 4000**0.5, rel=0.15)


def test_energy_distance_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    # 2 * mean(2, 4, 1, 3) - 1 - 2
    assert energy_distance(x, y).value == pytest.approx(2.0, abs=1e-7)


def test_energy_distance_of_gaussians():
    # scipy's is the square root of the biased one: same numbers, diagonals included
    x, y = normal(300, seed=1), normal(200, shift=1.0, seed=2)
    mine = energy_distance(x, y).value
    biased = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    within = torch.cdist(x, x).mean() / 299 + torch.cdist(y, y).mean() / 199
    assert mine == pytest.approx(biased - within.item(), abs=1e-7)


def test_mmd_by_hand_and_in_closed_form():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    k = [math.exp(-(d**2) / 2) for d in (0, 1, 2)]
    expected = k[1] + k[2] - 2 * (k[0] + k[2] + k[1] + k[1]) / 4
    assert mmd(x, y, bandwidth=1.0).value == pytest.approx(expected, abs=1e-9)
    # N(0,1) against N(m,1): 2 (1 - exp(-m^2/(2(2+h^2)))) h / sqrt(2+h^2)
    h, m = 1.5, 1.0
    true = 2 * (1 - math.exp(-(m**2) / (2 * (2 + h**2)))) * h / math.sqrt(2 + h**2)
    found = mmd(normal(1500, seed=3), normal(1500, shift=m, seed=4), h, resamples=200)
    assert found.low < true < found.high


@pytest.mark.parametrize("distance", [mmd, energy_distance])
def test_unbiased_for_equal_distributions(distance):
    values = [
        distance(normal(60, 2, seed=2 * s), normal(60, 2, seed=2 * s + 1), resamples=2).value
        for s in range(100)
    ]
    values = torch.tensor(values)
    assert values.mean().abs() < 4 * values.std() / 10
    assert (values < 0).any()
    found = distance(normal(200, 2, seed=5), normal(200, 2, seed=6))
    assert found.low < 0 < found.high


def test_sliced_wasserstein_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]])
    assert sliced_wasserstein(x, y).value == pytest.approx(2.0, abs=1e-12)
    assert sliced_wasserstein(x, x).value == 0
    # a shift by v: |v| times the root mean square cosine, 1/sqrt(d)
    x = normal(50, 3)
    moved = sliced_wasserstein(x, x + torch.tensor([2.0, 0, 0]), 4000, resamples=2)
    assert moved.value == pytest.approx(2 / 3**0.5, rel=0.02)


def test_sliced_wasserstein_at_unequal_sizes():
    x, y = normal(64, seed=1), normal(64, shift=0.5, seed=2)
    doubled = torch.cat([y, y])
    value = sliced_wasserstein(x, y, p=1.0).value
    assert value == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)
    assert sliced_wasserstein(x, doubled, p=1.0).value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("distance", [mmd, energy_distance, sliced_wasserstein])
def test_estimates(distance):
    x, y = normal(100, 2, seed=1), normal(80, 2, shift=1.0, seed=2)
    found = distance(x, y)
    assert found.low < found.value < found.high
    assert distance(x, y) == found
    turned = torch.linalg.qr(normal(2, 2, seed=9)).Q
    if distance is not sliced_wasserstein:  # its random directions do not turn along
        again = distance(x @ turned, y @ turned)
        assert_close(again.value, found.value, rtol=1e-6, atol=1e-7)


def test_bad_values():
    x = normal(5)
    with pytest.raises(ValueError, match="bandwidth must be positive, got -1"):
        mmd(x, x, -1.0)
    with pytest.raises(ValueError, match="p and projections must be >= 1"):
        sliced_wasserstein(x, x, p=0.5)
    with pytest.raises(ValueError, match=r"samples must be \(N, d\)"):
        mmd(x, normal(5, 2))
