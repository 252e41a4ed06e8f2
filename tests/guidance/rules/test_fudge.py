"""Classifier reweighting of next tokens: exact conditionals, and CFG of the exact model."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

import fairlead as fl

P_C = torch.tensor([[0.6, 0.1], [0.1, 0.2]], dtype=torch.float64)
P_U = (P_C + torch.tensor([[0.1, 0.2], [0.5, 0.2]], dtype=torch.float64)) / 2
GOLDEN = {  # left to right, over (00, 01, 10, 11)
    1.0: [0.6, 0.1, 0.1, 0.2],
    2.0: [0.793403, 0.051424, 0.022167, 0.133005],
    3.0: [0.904235, 0.022792, 0.003841, 0.069132],
}


def posterior(tokens):
    """`log p(y | prefix)`, exact."""
    joint = [p.sum(1)[tokens[:, 0]] if tokens.shape[1] == 1 else p[*tokens.T] for p in (P_C, P_U)]
    return (joint[0] / joint[1] / 2).log()


def step(guide, p, tokens):
    rewards = {"classifier": posterior}
    return fl.combine(guide, {"cond": p.log()}, domain="logprob", tokens=tokens, rewards=rewards)


@pytest.mark.parametrize("gamma", GOLDEN)
def test_the_exact_posterior_gives_the_conditional_and_its_guidance(gamma):
    guide = fl.CFG(1.0) | fl.Fudge(gamma, top_k=0)
    first = step(guide, P_U.sum(1)[None], torch.empty(1, 0, dtype=torch.long)).exp()[0]
    second = step(guide, P_U / P_U.sum(1, keepdim=True), torch.tensor([[0], [1]])).exp()
    expected = torch.tensor(GOLDEN[gamma], dtype=torch.float64)
    assert_close((first[:, None] * second).flatten(), expected, rtol=0, atol=1e-6)


def test_candidates_alone_remain_and_are_all_that_is_classified():
    seen = []

    def classifier(tokens):
        seen.append(tokens)
        return -tokens[:, -1].double()

    p = torch.tensor([[0.4, 0.1, 0.3, 0.2]], dtype=torch.float64)
    out = fl.combine(
        fl.CFG(1.0) | fl.Fudge(-1.0, top_k=2),
        {"cond": p.log()},
        domain="logprob",
        tokens=torch.tensor([[7, 8]]),
        rewards={"classifier": classifier},
    ).exp()
    assert seen[0].tolist() == [[7, 8, 0], [7, 8, 2]]
    weights = p * torch.tensor([[0.0, 0.0, 2.0, 0.0]]).exp() * torch.tensor([[1, 0, 1, 0]])
    assert_close(out, weights / weights.sum())


def test_no_strength_and_a_constant_classifier_change_nothing():
    p = torch.tensor([[0.4, 0.1, 0.3, 0.2]], dtype=torch.float64).log()
    plain = fl.combine(fl.CFG(1.0) | fl.Fudge(0.0, top_k=0), {"cond": p}, domain="logprob")
    assert_close(plain, p)
    even = fl.combine(
        fl.CFG(1.0) | fl.Fudge(3.0, top_k=0),
        {"cond": p},
        domain="logprob",
        tokens=torch.tensor([[1]]),
        rewards={"classifier": lambda tokens: torch.full((len(tokens),), -2.0)},
    )
    assert_close(even, p)


def test_what_is_missing_is_named():
    p = torch.full((1, 4), 0.25).log()
    with pytest.raises(ValueError, match="tokens so far are not known"):
        fl.combine(fl.CFG(1.0) | fl.Fudge(1.0), {"cond": p}, domain="logprob")
    with pytest.raises(ValueError, match="no reward 'judge': pass rewards="):
        fl.combine(
            fl.CFG(1.0) | fl.Fudge(1.0, classifier="judge"),
            {"cond": p},
            domain="logprob",
            tokens=torch.tensor([[1]]),
        )
    with pytest.raises(ValueError, match=r"must give \(4,\) numbers"):
        fl.combine(
            fl.CFG(1.0) | fl.Fudge(1.0),
            {"cond": p},
            domain="logprob",
            tokens=torch.tensor([[1]]),
            rewards={"classifier": lambda tokens: tokens.double()},
        )


def test_generation_hands_over_what_it_generated():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    model, lengths = GPT2LMHeadModel(config).eval(), []

    def even(tokens):
        lengths.append(tokens.shape[1])
        return torch.where(tokens[:, -1] % 2 == 0, 0.0, -1e4)

    guide = fl.CFG(1.5) | fl.Fudge(1.0, top_k=0)
    options = {"max_new_tokens": 5, "num_beams": 2, "eos_token_id": None}
    out = fl.generate(
        model, None, [[1, 3, 5], [7]], guide=guide, rewards={"classifier": even}, **options
    )
    assert bool((out.sequences[:, 3:] % 2 == 0).all())
    assert lengths == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no reward 'classifier': pass rewards="):
        fl.generate(model, None, [[1]], guide=guide)
