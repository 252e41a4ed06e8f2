"""Gaussian sequences: the process, and the denoiser against conditioning by hand."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianSequence
from fairlead.schedules import Level

LEVEL = Level(0.0, 0.8, 0.6)


def test_autoregressive_process_has_its_covariance():
    first = GaussianSequence.autoregressive([0.9], 5, [0])
    expected = torch.tensor([0.9**k for k in range(5)], dtype=torch.float64)
    assert_close(first.covariance[0], expected)
    phi = (0.35, 0.6)
    r = GaussianSequence.autoregressive(phi, 8, [0]).covariance[0]
    for k in range(2, 8):
        assert_close(r[k], phi[0] * r[k - 1] + phi[1] * r[k - 2])
    assert_close(r[1], phi[0] + phi[1] * r[1])


def test_denoiser_is_gaussian_conditioning():
    s = GaussianSequence.autoregressive([0.7], 4, [0, 3])
    generator = torch.Generator().manual_seed(0)
    x, h = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    k = torch.tensor([[0.0, 0.3]], dtype=torch.float64).expand(5, 2)
    c = s.covariance
    keep = torch.tensor([1.0, (1 - 0.09) ** 0.5], dtype=torch.float64)
    scale = torch.cat([keep[:1], torch.full((2,), 0.8, dtype=torch.float64), keep[1:]])
    noise = torch.tensor([0.0, 0.36, 0.36, 0.09], dtype=torch.float64)
    joint = scale[:, None] * c * scale + torch.diag(noise)
    seen = torch.stack([h[:, 0], x[:, 0], x[:, 1], h[:, 1]], 1)
    gain = c[[1, 2]] * scale @ torch.linalg.inv(joint)
    assert_close(s.x0(x, LEVEL, h, k), seen @ gain.T)


def test_pure_noise_says_nothing():
    s = GaussianSequence.autoregressive([0.7], 4, [0])
    x, h = torch.ones(2, 3, dtype=torch.float64), torch.tensor([[5.0], [-5.0]]).double()
    one, other = s.x0(x, LEVEL, h, torch.ones(2, 1))
    assert_close(one, other)
    assert_close(s.mean(h, level=1.0), torch.zeros(2, 3, dtype=torch.float64))


def test_samples_have_mean_and_spread():
    s = GaussianSequence.autoregressive([0.9], 5, [0, 4])
    d = s.denoiser(fl.schedules.EDM())
    h = torch.tensor([2.0, -1.0]).expand(3000, 2)
    condition = {"history": h, "history_level": torch.zeros(3000, 2)}
    x = fl.sample(d, condition, n=3000, steps=40).x.double()
    assert_close(x.mean(0), s.mean(h[:1])[0], atol=0.03, rtol=0)  # three standard errors
    assert_close(x.T.cov(), s.spread(), atol=0.05, rtol=0.05)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"covariance must be square, got \(2, 3\)"):
        GaussianSequence(torch.ones(2, 3), [0])
    with pytest.raises(ValueError, match=r"given must be in 0..1, got \[2\]"):
        GaussianSequence(torch.eye(2), [2])
