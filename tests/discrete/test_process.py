"""Corruption and its bounds: shares of clean tokens, and the limit of the discrete-time KL."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.discrete import Masked, Uniform


@pytest.mark.parametrize("process", [Masked(4), Uniform(4), Masked(4, eps=0.0)])
def test_corruption_keeps_the_share_that_it_says(process):
    g = torch.Generator().manual_seed(0)
    x, t = torch.full((3, 40_000), 2), torch.tensor([0.0, 0.4, 1.0])
    z = process.corrupt(x, t, g)
    noise = 0.0 if process.mask else 0.25
    expected = process.a(t) * (1 - noise) + noise
    assert_close((z == 2).double().mean(1).float(), expected, rtol=0, atol=0.01)  # sd 0.0025
    assert process.size == 4 + (process.mask is not None)
    assert z.max() < process.size


def reverse(a_s, a_t, x, i):
    """q(z_s | z_t = i, x) of the uniform process, by Bayes; x is a distribution."""
    k, ratio = len(x), a_t / a_s
    e = torch.eye(k, dtype=x.dtype)[i]
    p = (ratio * e + (1 - ratio) / k) * (a_s * x + (1 - a_s) / k)
    return p / p.sum()


def test_uniform_bound_is_the_limit_of_the_divergence():
    process, n, g = Uniform(5), 100_000, torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 5, generator=g, dtype=torch.float64)
    x, z, t = torch.tensor([[0, 1, 4]]), torch.tensor([[0, 2, 3]]), torch.tensor([0.37])
    t = t.double()
    loss = process.loss(logits, x, z, t)
    for place in range(3):
        a_s, a_t = float(process.a(t - 1 / n)), float(process.a(t))
        true = reverse(a_s, a_t, torch.eye(5).double()[x[0, place]], z[0, place])
        ours = reverse(a_s, a_t, logits[0, place].softmax(-1), z[0, place])
        divergence = n * (true * (true / ours).log()).sum()
        assert_close(loss[0, place], divergence, rtol=1e-3, atol=1e-4)  # the error is of order 1/n


def test_uniform_bound_vanishes_for_the_truth():
    x, z = torch.tensor([[0, 1]]), torch.tensor([[2, 1]])
    logits = 60 * torch.eye(3)[x].double()
    assert_close(
        Uniform(3).loss(logits, x, z, torch.tensor([0.5])),
        torch.zeros(1, 2).double(),
        atol=1e-9,
        rtol=0,
    )


def test_uniform_bound_is_least_for_the_leave_one_out_posterior():
    table, process, time = fl.exact.golden_tokens(), Uniform(2, eps=0.0), 0.45
    z, x = table.sequences, table.sequences
    seen = process.likelihood(z, time)  # q(z^l | x^l)
    weight = (table.laws[0][None] * seen[:, 0][:, x[:, 0]] * seen[:, 1][:, x[:, 1]]).detach()
    t = torch.full((4,), time).double()

    def mean(logits):
        """The expected bound of predictions `(4, 2, 2)`, one for each noisy sequence."""
        each = [process.loss(logits, row.expand(4, 2), z, t).sum(1) for row in x]
        return (torch.stack(each, 1) * weight).sum()

    oracle = table.denoiser(process).within("clean")(z, process.level(time), {"label": 0})
    logits = oracle.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean(logits), logits)
    assert slope.abs().max() < 1e-7  # networks are told their time in float32
    full = torch.log_softmax(oracle + seen.log(), -1)  # p(x | z)
    assert mean(full) > mean(oracle) + 0.01
    noise = torch.randn(oracle.shape, generator=torch.Generator().manual_seed(0)).double()
    assert mean(oracle + 0.1 * noise) > mean(oracle)


def test_masked_bound_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    loss = Masked(2, eps=0.0).loss(
        logits, torch.tensor([[0, 1]]), torch.tensor([[2, 1]]), torch.tensor([0.25])
    )
    assert_close(loss, torch.tensor([[4 * 0.6931472, 0.0]]))  # log 2 / t, only where masked


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"masked: tokens must be in \[1, inf\], got 0"):
        Masked(0)
    with pytest.raises(ValueError, match=r"uniform: eps must be in \[0, 1\), got 1"):
        Uniform(3, eps=1)
