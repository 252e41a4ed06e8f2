"""Mixtures with several conditions, against mixtures made by hand."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture, LabelledMixture
from fairlead.schedules import Level

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
LABELS = {"side": [0, 1, 1, 0], "top": [0, 0, 1, 2]}
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LEVEL = Level(0.0, 0.8, 0.6)


@pytest.fixture
def mixture():
    return LabelledMixture(MEANS, 0.25, LABELS, WEIGHTS)


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        (None, [0, 1, 2, 3]),
        ({"side": 1}, [1, 2]),
        ({"side": 1, "top": -1}, [1, 2]),
        ({"top": 0}, [0, 1]),
        ({"side": 1, "top": 1}, [2]),
    ],
)
def test_every_subset_is_the_mixture_of_its_components(mixture, asked, rows):
    alone = GaussianMixture(MEANS[rows], 0.25, WEIGHTS[rows])
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for what in ("log_density", "score", "x0"):
        assert_close(getattr(mixture, what)(x, LEVEL, asked), getattr(alone, what)(x, LEVEL))
    assert_close(mixture.mean(asked), WEIGHTS[rows] @ MEANS[rows] / WEIGHTS[rows].sum())


def test_values_may_differ_by_sample(mixture):
    x = torch.zeros(3, 2, dtype=torch.float64)
    together = mixture.x0(x, LEVEL, {"side": torch.tensor([0, 1, -1]), "top": 0})
    for i, side in enumerate((0, 1, -1)):
        assert_close(together[i : i + 1], mixture.x0(x[:1], LEVEL, {"side": side, "top": 0}))


def test_posterior_is_bayes(mixture):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, own in LABELS.items():
        posterior = mixture.log_posterior(x, LEVEL, name).exp()
        for value in sorted(set(own)):
            prior = WEIGHTS[torch.tensor(own) == value].sum()
            given = mixture.log_density(x, LEVEL, {name: value}).exp() * prior
            assert_close(posterior[:, value], given / mixture.log_density(x, LEVEL).exp())


def test_denoiser_takes_conditions_by_name(mixture):
    d = mixture.denoiser(fl.schedules.EDM())
    x = torch.ones(2, 2, dtype=torch.float64)
    condition = fl.Condition({"side": [1, 0], "top": [1, 2]})
    assert_close(
        d(x, 1.0, d.null_condition(condition, ["top"])), d(x, 1.0, {"side": torch.tensor([1, 0])})
    )
    wider = mixture.widen(0.5)
    assert_close(wider.parts.eigenvalues, mixture.parts.eigenvalues + 0.5)
    out = fl.sample(d, {"side": [1, 1], "top": [1, 0]}, steps=20, dtype=torch.float64)
    assert out.nfe.tolist() == [39, 39]


def test_samples_have_the_values(mixture):
    x = mixture.sample(2000, {"side": 1}, torch.Generator().manual_seed(0))
    assert_close(x.mean(0), mixture.mean({"side": 1}), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"side": 2}, r"side must be in -1\.\.1"),
        ({"size": 0}, "no condition 'size'; there are side, top"),
        ({"side": 0, "top": 1}, "no component has the values"),
        (3, "as a mapping from name, got 3"),
    ],
)
def test_bad_conditions_are_named(mixture, asked, message):
    with pytest.raises(ValueError, match=message):
        mixture.x0(torch.zeros(1, 2), LEVEL, asked)


def test_bad_labels_are_named():
    with pytest.raises(ValueError, match=r"top must be \(4,\)"):
        LabelledMixture(MEANS, 0.25, {"top": [0, 1]})
    with pytest.raises(ValueError, match=r"top must fill 0\.\.2, got \[0, 0, 2, 2\]"):
        LabelledMixture(MEANS, 0.25, {"top": [0, 0, 2, 2]})
