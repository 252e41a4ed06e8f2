"""CCA: by hand, its optimum by derivatives, and guidance as the optimum of a normalised model."""

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fairlead.exact.tokens import TokenTable, golden_tokens
from fairlead.training import cca_loss, sequence_log_prob

P_C = torch.tensor([[0.6, 0.1], [0.1, 0.2]], dtype=torch.float64)
EVEN = TokenTable(torch.stack([P_C, P_C.flip(0, 1)]), torch.tensor([0.5, 0.5]))
"""Two classes that mirror each other, so that their normalisers are equal."""


def expected(delta, table, beta, lam):
    """The loss in expectation over `x, c` and an independent `c'`; `delta` is `(C, N)`."""
    classes = len(table.prior)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(classes):
        for other in range(classes):
            loss = cca_loss(delta[c], delta[other], beta=beta, lam=lam)
            total = total + table.prior[c] * table.prior[other] * (table.laws[c] * loss).sum()
    return total


def test_worked_by_hand():
    right, wrong = torch.tensor([0.0, log(3), 0.0]), torch.tensor([0.0, -log(3), log(3)])
    found = cca_loss(right, wrong, beta=1.0, lam=0.5)
    assert_close(found, torch.tensor([1.5 * log(2), 1.5 * log(4 / 3), log(2) + 0.5 * log(4)]))
    assert_close(
        cca_loss(right, wrong, beta=1.0, lam=4.0)[2], torch.tensor((log(2) + 4 * log(4)) / 4)
    )
    same = torch.tensor([False, False, True])
    mixed = cca_loss(right, wrong, beta=1.0, lam=4.0, same=same)
    assert_close(mixed[2], torch.tensor((log(2) + log(4 / 3)) / 4))
    assert_close(mixed[:2], cca_loss(right, wrong, beta=1.0, lam=4.0)[:2])


@given(st.floats(0.1, 2), st.floats(0.2, 5))
def test_the_free_optimum(beta, lam):
    table = golden_tokens()
    laws = table.laws[:-1]
    delta = ((laws / table.laws[-1]).log() - log(lam)) / beta
    delta.requires_grad_()
    (g,) = torch.autograd.grad(expected(delta, table, beta, lam), delta)
    assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-12)
    (g,) = torch.autograd.grad(expected(delta + 0.1, table, beta, lam), delta)
    assert bool((g > 0).all())


def autoregressive(law):
    """Logits of the first token and of the second given the first, of a law of two tokens."""
    joint = law.reshape(2, 2)
    return joint.sum(1).log(), (joint / joint.sum(1, keepdim=True)).log()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_a_normalised_model_is_guided_where_lam_is_its_normaliser(beta):
    w = 1 + 1 / beta
    z = (EVEN.laws[:-1] ** w * EVEN.laws[-1] ** (1 - w)).sum(1)
    assert_close(z[0], z[1])
    logits = [
        [v.requires_grad_() for v in autoregressive(EVEN.tilted(w, label))] for label in range(2)
    ]

    def slope(lam):
        deltas = []
        for label, (first, second) in enumerate(logits):
            shifted = torch.stack([first.expand(4, 2), second[EVEN.sequences[:, 0]]], 1)
            deltas.append(sequence_log_prob(shifted, EVEN.sequences) - EVEN.laws[label].log())
        loss = expected(torch.stack(deltas), EVEN, beta, lam)
        gradients = torch.autograd.grad(loss, [v for pair in logits for v in pair])
        return max(g.abs().max().item() for g in gradients)

    lam = z[0].item() ** beta
    assert slope(lam) < 1e-12
    assert slope(1.3 * lam) > 1e-3


def test_a_sequence_is_the_sum_of_its_tokens():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    tokens, mask = torch.tensor([[0, 1, 2, 3]] * 3), torch.tensor([[1, 1, 0, 1]] * 3)
    p = logits.softmax(-1)
    by_hand = p[:, 0, 0] * p[:, 1, 1] * p[:, 3, 3]
    assert_close(sequence_log_prob(logits, tokens, mask).exp(), by_hand)
    assert_close(sequence_log_prob(logits, tokens).exp(), by_hand * p[:, 2, 2])


def test_bad_input_is_named():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"cca_loss: beta must be in \(0, inf\), got 0"):
        cca_loss(x, x, beta=0.0)
    with pytest.raises(ValueError, match=r"cca_loss: lam must be in \(0, inf\), got nan"):
        cca_loss(x, x, lam=float("nan"))
    with pytest.raises(ValueError, match=r"must be \(B,\), got \[\(2,\), \(3,\)\]"):
        cca_loss(x, torch.zeros(3))
