"""Classifier reweighting of next tokens: exact conditionals, and CFG of the exact model."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

import fairlead as fl
from fairlead.guidance.context import Run

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


P = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.97, 0.01, 0.01, 0.01]], dtype=torch.float64)
Q = torch.tensor([0.1, 0.9, 0.5, 0.2], dtype=torch.float64)


def caif(guide, run=None, seen=None):
    def classifier(tokens):
        if seen is not None:
            seen.append(tokens)
        return Q[tokens[:, -1]].log()

    return fl.combine(
        guide,
        {"cond": P.log()},
        domain="logprob",
        tokens=torch.tensor([[7], [8]]),
        rewards={"classifier": classifier},
        run=run,
    ).exp()


def test_of_the_candidates_the_best_sums_remain():
    """CAIF: j = 3 candidates, scores less their means, the k = 2 largest, normalised."""
    out = caif(fl.CFG(1.0) | fl.Fudge(2.0, top_k=3, keep=2))
    for row, p in zip(out, P, strict=True):
        best = p.topk(3).indices
        score = p[best].log() - p[best].log().mean()
        score = score + 2.0 * (Q[best].log() - Q[best].log().mean())
        kept = best[score.topk(2).indices]
        expected = torch.zeros(4, dtype=torch.float64)
        expected[kept] = p[kept] * Q[kept] ** 2
        assert_close(row, expected / expected.sum())


def test_without_strength_the_likeliest_remain():
    out = caif(fl.CFG(1.0) | fl.Fudge(0.0, top_k=0, keep=2))
    assert_close(out[0], torch.tensor([4.0, 0.0, 3.0, 0.0], dtype=torch.float64) / 7)


def test_texts_whose_next_token_is_sure_are_not_reweighted():
    seen = []
    out = caif(fl.CFG(1.0) | fl.Fudge(1.0, top_k=0, entropy=0.5), seen=seen)
    assert seen[0].tolist() == [[7, k] for k in (0, 2, 3, 1)]  # the entropies: 1.28 and 0.17
    assert_close(out, torch.stack([P[0] * Q / (P[0] * Q).sum(), P[1]]))
    entropy = -(P * P.log()).sum(1)
    for bound, calls in ((entropy[0] * 0.999, 1), (entropy[0] * 1.001, 0)):
        seen.clear()
        caif(fl.CFG(1.0) | fl.Fudge(1.0, top_k=0, entropy=float(bound)), seen=seen)
        assert len(seen) == calls


def test_between_every_so_many_tokens_the_model_goes_on_alone():
    guide, run = fl.CFG(1.0) | fl.Fudge(1.0, top_k=0, every=3), Run(check=False, record=False)
    changed = [not torch.allclose(caif(guide, run), P) for _ in range(7)]
    assert changed == [True, False, False, True, False, False, True]


@pytest.mark.parametrize(("name", "value"), [("keep", -1), ("entropy", -0.1), ("every", 0)])
def test_bad_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"fudge: {name} must be in .*, got {value}"):
        fl.Fudge(1.0, **{name: value})


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
    with pytest.raises(ValueError, match=r"must give a tensor of \(4,\) numbers"):
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
