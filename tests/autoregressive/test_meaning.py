"""Distances between prompts: identities, sums by hand, and guided Markov chains."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from fairlead.autoregressive import (
    entails,
    generate,
    meaning_distance,
    trajectory_distance,
    trajectory_scores,
)

END = 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = GPT2LMHeadModel(
        GPT2Config(vocab_size=11, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=END)
    ).eval()
    for p in made.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.4)
    made.tie_weights()
    return made


def test_scores_are_those_of_both_prompts():
    """Continuations are numbers here; the laws score them `-k s`."""
    laws = [
        (lambda n: torch.arange(n), lambda s: -s.double()),
        (lambda n: torch.arange(n) + 5, lambda s: -2 * s.double()),
    ]
    found = trajectory_scores(*laws, n=2)
    assert found.tolist() == [[0, -1, -5, -6], [0, -2, -10, -12]]
    assert trajectory_distance(found) == 3.0
    assert entails(found)  # the second is the smaller everywhere: its distance to it is 0
    assert not entails(found.flip(0))


def test_entailment_by_hand():
    u, v = [-1.0, -4.0, -1.0], [-2.0, -3.0, -1.0]  # smaller: -2 -4 -1, distances 1 and 1
    assert not entails(torch.tensor([u, v]))
    u = [-0.5, -4.0, -1.0]  # 1.5 against 1
    assert entails(torch.tensor([u, v]))
    assert not entails(torch.tensor([v, u]))


def test_equal_prompts_are_at_0_and_the_order_does_not_matter(model):
    options = {"n": 6, "length": 5}
    assert meaning_distance(model, None, [5, 6], [5, 6], **options) == 0.0
    one = meaning_distance(model, None, [5, 6], [7], **options)
    other = meaning_distance(model, None, [7], [5, 6], **options)
    assert one == pytest.approx(other, rel=1e-6)
    assert one > 0.1


def test_against_a_loop_over_tokens(model):
    """Also of texts that end early: the end token counts, the padding behind it does not."""
    prompts, total, early = ([5, 6], [7]), 0.0, 0
    for own in prompts:
        texts = generate(
            model,
            None,
            [own],
            max_new_tokens=6,
            seed=1,
            do_sample=True,
            top_k=0,
            num_return_sequences=8,
        ).sequences[:, len(own) :]
        for row in texts.tolist():
            text = row[: row.index(END) + 1] if END in row else row
            early += len(text) < 6
            means = []
            for prompt in prompts:
                ids = [*prompt, *text]
                with torch.no_grad():
                    log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                terms = [log_p[i - 1, ids[i]] for i in range(len(prompt), len(ids))]
                means.append(sum(terms) / len(text))
            total += abs(means[0] - means[1]).item()
    assert early > 0
    found = meaning_distance(model, None, *prompts, n=8, length=6, seed=1)
    assert_close(found, total / 16, rtol=1e-5, atol=1e-6)


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        meaning_distance(model, None, [5], [6], n=0)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        meaning_distance(model, None, [5], [6], length=0)
    torch.manual_seed(0)
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="needs a decoder-only model"):
        meaning_distance(T5ForConditionalGeneration(config), None, [5], [6])
