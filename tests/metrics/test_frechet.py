"""Fréchet distance: closed forms, invariances, scipy as a peer, and its bias."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from fairlead.metrics import (
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    moments,
)


def gaussian(seed, d):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, dtype=torch.float64, generator=g)
    return torch.randn(d, dtype=torch.float64, generator=g), root @ root.T


few = settings(max_examples=30, deadline=None, derandomize=True)
seeds, dims = st.integers(0, 10**6), st.integers(1, 8)


def test_by_hand():
    m, s = torch.zeros(2), torch.diag(torch.tensor([1.0, 4.0]))
    m2, s2 = torch.tensor([3.0, 4.0]), torch.diag(torch.tensor([9.0, 4.0]))
    # 25 + (1 - 3)^2 + (2 - 2)^2
    assert frechet_distance(m, s, m2, s2) == pytest.approx(29, abs=1e-12)


@few
@given(seeds, dims)
def test_identities(seed, d):
    a, b = gaussian(seed, d), gaussian(seed + 1, d)
    value = frechet_distance(*a, *b)
    # square roots of rounding 1e-16 in singular directions leave 1e-7
    tol = {"rel": 1e-6, "abs": 1e-6}
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(*b, *a) == pytest.approx(value, **tol)
    q = torch.linalg.qr(gaussian(seed + 2, d)[1] + torch.eye(d)).Q
    shift = gaussian(seed + 3, d)[0]
    turned = [(q @ m + shift, q @ s @ q.T) for m, s in (a, b)]
    assert frechet_distance(*turned[0], *turned[1]) == pytest.approx(value, **tol)
    scaled = [(3 * m, 9 * s) for m, s in (a, b)]
    assert frechet_distance(*scaled[0], *scaled[1]) == pytest.approx(9 * value, **tol)
    root = linalg.sqrtm((a[1] @ b[1]).numpy()).real.trace()
    peer = (a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * root
    assert value == pytest.approx(peer.item(), **tol)


def test_singular_covariances():
    v = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    m, s = torch.zeros(3, dtype=torch.float64), torch.outer(v, v)
    # point mass against a line: the trace
    assert frechet_distance(m, s, m, 0 * s) == pytest.approx(5, abs=1e-7)
    assert frechet_distance(m, s, m, 4 * s) == pytest.approx(5, abs=1e-7)


def test_moments_are_numpys():
    x = torch.randn(20, 3, dtype=torch.float32)
    mean, cov = moments(x)
    assert mean.dtype == torch.float64
    assert torch.allclose(cov, x.double().T.cov())
    assert torch.allclose(mean, x.double().mean(0))


@pytest.mark.parametrize(("n", "d"), [(200, 5), (20, 40)])
def test_from_features(n, d):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g) + 0.5
    m, s = torch.zeros(d), torch.eye(d)
    found = frechet_from_features(x, m, s)
    assert found.value == frechet_distance(*moments(x), m, s)
    assert found.low < found.value < found.high
    assert frechet_from_features(x, m, s) == found


def test_resampled_distances_are_those_of_resampled_features(monkeypatch):
    """The short way through weighted rows, against repeating the rows."""
    from fairlead.metrics import frechet

    kept = {}
    for n, d in ((30, 4), (10, 20)):
        x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        m, s = gaussian(2, d)
        monkeypatch.setattr(frechet, "interval", lambda value, draws, **_: kept.update(d=draws))
        frechet_from_features(x, m, s, resamples=3, seed=5)
        for weight, mine in zip(frechet.counts(n, 3, 5), kept["d"].tolist(), strict=True):
            repeated = x.repeat_interleave(weight.long(), 0)
            assert mine == pytest.approx(frechet_distance(*moments(repeated), m, s), rel=1e-6)


def test_interval_covers_a_large_sample():
    g = torch.Generator().manual_seed(0)
    m, s = torch.zeros(3), torch.eye(3)
    found = frechet_from_features(torch.randn(2000, 3, generator=g) + 1, m, s, resamples=200)
    assert found.low < 3 < found.high


def test_infinity_takes_the_bias_away():
    g = torch.Generator().manual_seed(0)
    d, n = 8, 2000
    m, s = torch.zeros(d), torch.eye(d)
    x = torch.randn(n, d, generator=g)
    # to first order the bias is d/N from the mean and d (d+1) / (8N) from the covariance ... the
    # extrapolation must leave much less of it than the plain distance has
    plain = frechet_distance(*moments(x), m, s)
    assert plain > 0.005
    assert abs(frechet_infinity(x, m, s)) < plain / 2


def test_bad_values():
    with pytest.raises(ValueError, match="equal shapes"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="N >= 2"):
        moments(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 20 rows, got 5"):
        frechet_infinity(torch.zeros(5, 2), torch.zeros(2), torch.eye(2))
