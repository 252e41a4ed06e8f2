"""Mixtures of models: the closed form, and chains that settle on it."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture

WHOLE = GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.4], [0.3, 0.7], [0, 1])


def mixed(shares=(0.3, 0.7)):
    d = WHOLE.denoiser(fl.schedules.EDM())
    return fl.MixtureDenoiser([(d, {"label": 0}), (d, {"label": 1})], shares)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_the_mixture_of_the_classes_is_the_marginal(sigma):
    x = sigma * torch.randn(9, 2, dtype=torch.float64)
    level = fl.schedules.Level(sigma, 1.0, sigma)
    assert_close(mixed()(x, level), WHOLE.x0(x, level))
    none = fl.Condition({})
    assert_close(mixed().log_density(x, level, none), WHOLE.log_density(x, level))


def test_one_part_is_itself():
    d = WHOLE.denoiser(fl.schedules.EDM())
    x = torch.randn(4, 2, dtype=torch.float64)
    assert_close(fl.MixtureDenoiser([(d, {"label": 1})])(x, 1.0), d(x, 1.0, {"label": [1] * 4}))


def test_it_is_sampled_like_any_model():
    out = fl.sample(mixed((1.0, 1.0)), n=400, sampler="mcmc('mala', steps=2, h=0.5)", steps=20)
    assert abs((out.x[:, 0] > 0).double().mean() - 0.5) < 0.1  # 4 standard errors
    assert out.nfe.unique().tolist() == [19 * 4 + 1]


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_bad_shares_are_refused(shares):
    with pytest.raises(ValueError, match="shares must be 2 positive numbers, one a part"):
        mixed(shares)
    with pytest.raises(ValueError, match="parts must not be empty"):
        fl.MixtureDenoiser([])
