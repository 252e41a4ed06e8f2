"""Recurrence: what it repeats, its law without guidance, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.schedules import VP

MIXTURE = GaussianMixture([[-2.0], [2.0]], 0.25)


def draw(sampler, n=2000, steps=20, **options):
    d = MIXTURE.denoiser(VP())
    return fl.sample(d, sampler=sampler, steps=steps, n=n, dtype=torch.float64, **options)


def test_once_is_the_base():
    assert torch.equal(draw("recurrence('ddim', times=1)", 5).x, draw("ddim", 5).x)


def test_cost_and_text():
    out = draw("recurrence('heun', times=3)", 2, 4)
    assert out.nfe.tolist() == [3 * 7] * 2
    sampler = fl.samplers.get("recurrence('ddim(eta=0.5)', times=3)")
    assert fl.samplers.get(str(sampler)) == sampler
    assert sampler.evaluations == 3


def test_law_stays_without_guidance():
    """Four repetitions of fine steps leave mean and spread of the data."""
    x = draw("recurrence('ddim', times=4)", steps=60).x
    # four standard errors of 2000 samples
    assert_close(x.mean().item(), 0.0, atol=4 * 2.06 / 2000**0.5, rtol=0)
    assert_close(x.abs().std().item(), 0.5, atol=0.05, rtol=0)


def test_other_levels_after_renoising_have_their_variance():
    """On point masses at 0 every repetition starts at the level's own standard deviation."""
    seen = []

    class Watched(GaussianMixture):
        def x0(self, x, level, label=None):
            seen.append(x.std().item() / level.sigma)
            return super().x0(x, level, label)

    d = Watched([[0.0]], 1e-12).denoiser(VP())
    fl.sample(d, sampler="recurrence('ddim', times=2)", steps=3, n=4000, dtype=torch.float64)
    assert len(seen) == 6
    for found in seen:
        assert found == pytest.approx(1.0, abs=0.05)


def test_bad_arguments():
    with pytest.raises(ValueError, match="recurrence: sampler must keep no memory"):
        fl.samplers.Recurrence("unipc")
    with pytest.raises(ValueError, match="recurrence: times must be in"):
        fl.samplers.Recurrence("ddim", 0)
    with pytest.raises(ValueError, match="unknown name 'dimd'"):
        fl.samplers.Recurrence("dimd")
