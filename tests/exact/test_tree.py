"""The fractal trees: published numbers and what coverage counts."""

import pytest
import torch
from torch.testing import assert_close

from fairlead.exact import covered, fractal_tree, group_shares, mode_kl, outlier_rate
from fairlead.schedules import EDM

TREE = fractal_tree()


def test_published_numbers():
    m = TREE.mixture
    assert torch.bincount(m.labels).tolist() == [1016, 1016]
    mean, cov = m.moments()
    # all as printed: four digits, three for class A
    assert_close(mean, torch.tensor([-0.0001, 0.0006], dtype=torch.float64), atol=5e-5, rtol=0)
    assert_close(cov.diagonal().sqrt(), torch.full((2,), 0.4999).double(), atol=5e-5, rtol=0)
    first = torch.tensor([0.372, 0.365], dtype=torch.float64)
    assert_close(m.moments(0)[0], first, atol=5e-4, rtol=0)


def test_branches():
    assert TREE.branch.bincount().tolist() == [8] * 254
    assert (TREE.branch < 127).eq(TREE.mixture.labels == 0).all()
    assert (TREE.depth[::8].bincount() == torch.tensor([2, 4, 8, 16, 32, 64, 128])).all()
    small = fractal_tree(depth=2)
    assert len(small.mixture.means) == 2 * 7 * 8
    with pytest.raises(ValueError, match="depth must be at least 0, got -1"):
        fractal_tree(-1)


def test_score_and_tweedie_with_many_full_covariances():
    m = TREE.mixture
    x = m.sample(20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    level = EDM().level(0.05)
    (slope,) = torch.autograd.grad(m.log_density(x, level, 0).sum(), x)
    x = x.detach()
    # slopes reach 1e3 at this level
    assert_close(m.score(x, level, 0), slope, rtol=1e-8, atol=1e-8)
    assert_close(m.x0(x, level, 0), x + level.sigma**2 * slope, rtol=1e-9, atol=1e-9)


def test_true_samples_cover_the_branches():
    m = TREE.mixture
    x = m.sample(2000, 0, torch.Generator().manual_seed(1))
    shares, due = group_shares(m, x, TREE.branch, 0)
    assert shares.sum().item() == pytest.approx(1)
    assert due.sum().item() == pytest.approx(1)
    assert due[127:].sum() == 0
    assert (shares - due).abs().sum() / 2 < 0.13
    assert covered(shares, due) > 0.85
    rate = outlier_rate(m, x, 0, draws=2000)
    assert rate.low < 0.01 < rate.high
    assert rate.value == pytest.approx(0.01, abs=0.01)
    noise = torch.Generator().manual_seed(2)
    # noise of the size of a thin branch throws many samples off it
    assert (
        outlier_rate(m, x + 0.03 * torch.randn(2000, 2, generator=noise), 0, draws=2000).value > 0.1
    )


def test_mode_kl_by_hand():
    due = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    assert mode_kl(due, due) == 0
    one = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert mode_kl(one, due) == pytest.approx(0.6931471805599453)
    assert mode_kl(torch.tensor([0.5, 0.4, 0.1]).double(), due) == float("inf")
    assert covered(one, due) == 0.5
