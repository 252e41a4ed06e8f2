"""Nearest-neighbour metrics: by hand, by brute force, and their exact identities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.metrics import (
    authenticity,
    density_coverage,
    expected_coverage,
    neighbour_metrics,
    precision_recall,
)
from fairlead.metrics.neighbours import radii

few = settings(max_examples=25, deadline=None, derandomize=True)


def normal(n, d, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return shift + torch.randn(n, d, dtype=torch.float64, generator=g)


def test_by_hand():
    # on a line, k = 1: real balls [0 +- 1], [1 +- 1], [3 +- 2]; generated [0.4 +- 9.6], [10 +- 9.6]
    real, generated = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.4], [10.0]])
    precision, recall = precision_recall(real, generated, k=1)
    assert (precision.value, recall.value) == (0.5, 1.0)
    density, coverage = density_coverage(real, generated, k=1)
    assert density.value == 1.0  # 0.4 lies in the first two balls, 10 in none
    assert coverage.value == pytest.approx(2 / 3)


@few
@given(st.integers(0, 10**6), st.integers(8, 30), st.integers(8, 30), st.integers(1, 6))
def test_brute_force(seed, n, m, d):
    real, generated = normal(n, d, seed), normal(m, d, seed + 1, 0.5)

    def radius(s, i, k):
        return sorted((s[i] - s[j]).norm().item() for j in range(len(s)) if j != i)[k - 1]

    def apart(i, j):
        return (generated[i] - real[j]).norm().item()

    r3, r5 = ([radius(real, j, k) for j in range(n)] for k in (3, 5))
    g3 = [radius(generated, i, 3) for i in range(m)]
    found = neighbour_metrics(real, generated)
    inside = sum(any(apart(i, j) <= r3[j] for j in range(n)) for i in range(m))
    back = sum(any(apart(i, j) <= g3[i] for i in range(m)) for j in range(n))
    held = sum(apart(i, j) < r5[j] for i in range(m) for j in range(n))
    hit = sum(min(apart(i, j) for i in range(m)) < r5[j] for j in range(n))
    assert found.precision.value == pytest.approx(inside / m)
    assert found.recall.value == pytest.approx(back / n)
    assert found.density.value == pytest.approx(held / (5 * m))
    assert found.coverage.value == pytest.approx(hit / n)


@few
@given(st.integers(0, 10**6), st.integers(10, 60), st.integers(1, 20), st.floats(-100, 100))
def test_identical_sets(seed, n, d, shift):
    x = normal(n, d, seed, shift)
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    found = neighbour_metrics(x, shuffled)
    assert found.precision.value == found.recall.value == found.coverage.value == 1
    assert found.density.value == pytest.approx(1, abs=1e-12)
    loose, _ = density_coverage(x, shuffled, k=5, strict=False)
    assert loose.value == pytest.approx(6 / 5, abs=1e-12)


def test_disjoint_sets():
    found = neighbour_metrics(normal(30, 3, 0), normal(30, 3, 1, shift=1000.0))
    for part in (found.precision, found.recall, found.density, found.coverage):
        assert part.value == part.low == part.high == 0


def test_expected_coverage():
    assert expected_coverage(10**6, 10**6) == pytest.approx(1 - 2**-5, abs=1e-5)
    assert expected_coverage(10, 20, 1) == pytest.approx(1 - 9 / 29)
    n, m, runs = 60, 40, 30
    values = [
        density_coverage(normal(n, 2, 2 * s), normal(m, 2, 2 * s + 1))[1].value for s in range(runs)
    ]
    values = torch.tensor(values)
    assert abs(values.mean() - expected_coverage(n, m)) < 4 * values.std() / runs**0.5


def test_chunks_agree(monkeypatch):
    real, generated = normal(50, 3, 0), normal(41, 3, 1)
    whole, alone = neighbour_metrics(real, generated), authenticity(real, generated)
    monkeypatch.setattr("fairlead.metrics.neighbours.CHUNK", 7)
    assert neighbour_metrics(real, generated) == whole
    assert authenticity(real, generated) == alone


def test_radii_skip_self_but_not_copies():
    x = torch.tensor([[0.0], [0.0], [5.0]], dtype=torch.float64)
    assert radii(x, 1).tolist() == [0, 0, 5]
    assert radii(x, 2).tolist() == [5, 5, 5]


def test_authenticity():
    train = torch.tensor([[0.0], [1.0], [5.0]])
    # 0.1 is nearer to 0 than 1 is; 2.5 is farther from 1 than 0 is; 6 is nearer to 5 than 1 is
    assert authenticity(train, torch.tensor([[0.1], [2.5], [6.0]])).value == pytest.approx(1 / 3)
    assert authenticity(train, train).value == 0


def test_bad_values():
    with pytest.raises(ValueError, match="k must be below the number of samples, got 3 for 3"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(ValueError, match=r"\(N, d\) and \(M, d\)"):
        neighbour_metrics(torch.zeros(9, 2), torch.zeros(9, 3))
