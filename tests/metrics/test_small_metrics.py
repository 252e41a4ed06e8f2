"""Bootstrap, diversity, classifier and pixel metrics: by hand and by identity."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.metrics import (
    Estimate,
    bootstrap,
    class_accuracy,
    class_confidence,
    class_diversity,
    class_log_probability,
    clipped_fraction,
    inception_score,
    mean_interval,
    saturation,
    vendi_score,
)
from fairlead.metrics.bootstrap import counts, interval, pair_means

few = settings(max_examples=30, deadline=None, derandomize=True)


def normal(n, d, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_estimate_reads_as_a_number():
    assert str(Estimate(0.25, 0.125, 0.5)) == "0.25 [0.125, 0.5]"
    assert float(Estimate(0.25)) == 0.25


def test_mean_interval_is_the_normal_one():
    x = normal(1000, 1)[:, 0]
    found = mean_interval(x, resamples=4000)
    half = 1.96 * x.std().item() / 1000**0.5
    assert found.value == pytest.approx(x.mean().item())
    # a 2.5 % quantile of 4000 draws is good to some 5 % of the half-width
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_mean_interval_covers():
    hits = 0
    for s in range(200):
        found = mean_interval(normal(50, 1, s)[:, 0], resamples=300)
        hits += found.low < 0 < found.high
    # 95 % less the known shortfall of percentile intervals at n = 50, within 4 deviations
    assert 176 <= hits <= 199


def test_bootstrap_of_any_statistic():
    x = normal(60, 1, 1)[:, 0]
    general = bootstrap(torch.mean, x, resamples=500, seed=3)
    fast = mean_interval(x, resamples=500, seed=3)
    assert general.value == pytest.approx(fast.value)
    assert general.low == pytest.approx(fast.low, abs=0.1)
    assert bootstrap(torch.mean, x, seed=1) == bootstrap(torch.mean, x, seed=1)
    assert bootstrap(torch.mean, x, seed=1) != bootstrap(torch.mean, x, seed=2)
    pair = bootstrap(lambda a, b: a.mean() - b.mean(), x, x[:30] + 5, resamples=50)
    assert pair.low < pair.value < pair.high < -4
    wide = bootstrap(torch.mean, x, confidence=0.99)
    narrow = bootstrap(torch.mean, x, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_centred_interval_keeps_the_spread():
    draws = torch.linspace(10, 11, 101, dtype=torch.float64)
    plain, moved = interval(3.0, draws), interval(3.0, draws, centred=True)
    assert (plain.low, plain.high) == pytest.approx((10.025, 10.975))
    assert (moved.low, moved.high) == pytest.approx((2.525, 3.475))


def test_counts_and_pair_means():
    c = counts(7, 5, 0)
    assert (c.sum(1) == 7).all()
    m = torch.tensor([[9.0, 1.0, 2.0], [1.0, 9.0, 3.0], [2.0, 3.0, 9.0]])
    ones = torch.ones(1, 3, dtype=torch.float64)
    assert pair_means(m, ones).item() == pytest.approx(2.0)
    # row 0 twice, row 1 once: the pair (0, 1) alone
    assert pair_means(m, torch.tensor([[2.0, 1.0, 0.0]]).double()).item() == pytest.approx(1.0)


def test_bad_bootstrap():
    with pytest.raises(ValueError, match="must not be empty"):
        bootstrap(torch.mean, torch.zeros(0))
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 1"):
        bootstrap(torch.mean, torch.zeros(3), confidence=1)
    with pytest.raises(ValueError, match="resamples must be at least 2, got 1"):
        mean_interval(torch.zeros(3), resamples=1)
    with pytest.raises(ValueError, match=r"values must be \(N,\)"):
        mean_interval(torch.zeros(3, 2))


def test_class_diversity_by_hand():
    x = torch.tensor([[0.0], [2.0], [0.0], [3.0], [6.0], [50.0]])
    label = torch.tensor([0, 0, 4, 4, 4, 7])
    # class 0: 2; class 4: (3 + 6 + 3) / 3; class 7 has one sample
    found = class_diversity(x, label)
    assert found.value == pytest.approx(3.0, abs=1e-7)
    assert found.low <= found.value <= found.high
    with pytest.raises(ValueError, match="at least two samples"):
        class_diversity(x[:2], torch.tensor([0, 1]))


def test_class_diversity_of_gaussians():
    x = normal(800, 2)
    found = class_diversity(x, torch.arange(800) % 2, resamples=200)
    # two points of the plane: E|X - X'| = sqrt(pi)
    assert found.low < math.pi**0.5 < found.high
    assert found.high - found.low < 0.2


orders = st.sampled_from([0.5, 1.0, 2.0, math.inf])


@few
@given(st.integers(1, 12), orders)
def test_vendi_counts_different_samples(n, q):
    assert vendi_score(torch.ones(n, 3), q) == pytest.approx(1, abs=1e-6)
    assert vendi_score(torch.eye(n), q) == pytest.approx(n, rel=1e-9)
    # an effective number of classes: 2 of one and 6 of another
    labels = torch.eye(2)[[0, 0, 1, 1, 1, 1, 1, 1]]
    expected = {
        0.5: (0.25**0.5 + 0.75**0.5) ** 2,
        1.0: math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)),
        2.0: 1 / (0.0625 + 0.5625),
        math.inf: 4 / 3,
    }[q]
    assert vendi_score(labels, q) == pytest.approx(expected, rel=1e-9)


@few
@given(st.integers(0, 1000), st.integers(2, 20), st.integers(1, 8), orders)
def test_vendi_identities(seed, n, d, q):
    x = normal(n, d, seed)
    value = vendi_score(x, q)
    assert 1 - 1e-9 <= value <= min(n, d) + 1e-9
    # at q = 1/2 an eigenvalue of 1e-14 counts 1e-7
    assert vendi_score(torch.cat([x, x]), q) == pytest.approx(value, rel=1e-5)
    assert vendi_score(x, 2.0) <= vendi_score(x, 1.0) + 1e-9
    assert vendi_score(x, math.inf) <= vendi_score(x, 2.0) + 1e-9
    wide = vendi_score(x, q, bandwidth=1.0)
    assert 1 <= vendi_score(x, q, bandwidth=10.0) <= wide <= n + 1e-9
    assert vendi_score(1e-3 * x, q, bandwidth=1e-3) == pytest.approx(wide, rel=1e-5)


def test_bad_vendi():
    with pytest.raises(ValueError, match="q must be positive, got 0"):
        vendi_score(torch.ones(2, 2), 0)
    with pytest.raises(ValueError, match="bandwidth must be positive, got -1"):
        vendi_score(torch.ones(2, 2), bandwidth=-1)


def test_classifier():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]]).log_softmax(1) + 7
    labels = torch.tensor([0, 1, 0])
    p = [1 / (1 + math.exp(-2)), 0.5, 1 / (1 + math.exp(3))]
    assert class_accuracy(logits, labels).value == pytest.approx(1 / 3)
    assert class_confidence(logits, labels).value == pytest.approx(sum(p) / 3)
    log_p = class_log_probability(logits, labels)
    assert log_p.value == pytest.approx(sum(map(math.log, p)) / 3)
    assert log_p.low < log_p.value < log_p.high
    with pytest.raises(ValueError, match=r"labels \(N,\)"):
        class_accuracy(logits, labels[:2])


def test_inception_score():
    sure = 1000 * torch.eye(5)
    assert inception_score(sure).value == pytest.approx(5)
    assert inception_score(torch.zeros(6, 5)).value == pytest.approx(1)
    assert inception_score(sure[:1].expand(4, 5)).value == pytest.approx(1)


def test_saturation():
    colours = torch.tensor(
        [[1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, -1.0, -1.0], [3.0, -3.0, 0.0]]
    )  # red 1, grey 0, pink 1/2, black 0, beyond the range 1
    images = colours[:, :, None, None].expand(5, 3, 2, 2)
    assert saturation(images).value == pytest.approx(0.5)
    assert saturation(images[:, :1]).value == 0
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
        saturation(torch.zeros(1, 4, 2, 2))


def test_clipped_fraction():
    images = torch.tensor([[[[1.0, -1.0], [0.999, 0.99]]], [[[0.0, 2.0], [0.5, -0.5]]]])
    assert clipped_fraction(images).value == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert clipped_fraction(images, tol=0.0).value == pytest.approx((2 / 4 + 1 / 4) / 2)
