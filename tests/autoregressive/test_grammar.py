"""Decoding under a regular expression, by enumeration on the language (ab|c)*."""

import functools
import itertools
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import fairlead as fl
from fairlead.autoregressive import Grammar, generate
from fairlead.models import zoo

LETTERS = {0: "a", 1: "b", 2: "c"}
P = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64)


def law(regex, length, log_p=None):
    """Probability of each complete text of up to `length` tokens, masked token by token."""
    log_p, found = P.log() if log_p is None else log_p, {}
    for n in range(length + 1):
        for text in itertools.product(range(3), repeat=n):
            grammar = Grammar(regex, LETTERS, eos=3)
            p = 1.0
            for i, token in enumerate((*text, 3)):
                ids = torch.tensor([[7, *text[:i]]])
                p *= grammar(ids, log_p)[0, token].exp().item()
                if p == 0:
                    break
            found["".join(LETTERS[t] for t in text)] = p
    return found


def test_every_text_is_in_the_language_and_has_the_masked_probability():
    found = law("(ab|c)*", 4)
    for text, p in found.items():
        assert (p > 0) == bool(re.fullmatch("(ab|c)*", text))
    assert_close([found[t] for t in ("", "c", "ab")], [0.125, 0.03125, 0.078125])


def test_the_masked_law_is_not_the_law_given_the_language():
    assert found_distance(law("(ab|c)*", 6)) == pytest.approx(0.7083, abs=0.01)


def found_distance(found):
    """Total variation to the exact conditional: .1 each text, times .1 for ab and .2 for c."""
    total, exact = 1 / 7, {}
    for text in found:
        weight = 0.1 * 0.5 ** text.count("a") * 0.2 ** (text.count("b") + text.count("c"))
        exact[text] = weight / total if re.fullmatch("(ab|c)*", text) else 0.0
    assert [exact[""], exact["c"], exact["ab"]] == pytest.approx([0.7, 0.14, 0.07])
    rest = abs((1 - sum(found.values())) - (1 - sum(exact.values())))
    return (sum(abs(found[t] - exact[t]) for t in found) + rest) / 2


def test_what_accepts_everything_changes_nothing():
    out = Grammar("[abc]*", LETTERS, eos=3)(torch.tensor([[7]]), P.log())
    assert_close(out, P.log())


def test_it_stands_behind_the_guide():
    null = torch.tensor([[0.1, 0.3, 0.3, 0.3]], dtype=torch.float64)
    guided = fl.combine("cfg(3)", {"cond": P.log(), "null": null.log()}, domain="logprob")
    out = Grammar("(ab|c)*", LETTERS, eos=3)(torch.tensor([[7]]), guided).exp()
    kept = (P**3 / null**2)[0, [0, 2, 3]]
    assert_close(out[0, [0, 2, 3]], kept / kept.sum())
    assert out[0, 1] == 0


def test_beams_may_reorder():
    grammar = Grammar("(ab|c)*", LETTERS, eos=3)
    grammar(torch.tensor([[7], [7]]), P.log().repeat(2, 1))
    grammar(torch.tensor([[7, 0], [7, 2]]), P.log().repeat(2, 1))
    out = grammar(torch.tensor([[7, 2, 0], [7, 2, 2]]), P.log().repeat(2, 1)).exp()
    assert out[0].tolist() == [0, 1, 0, 0]
    assert out[1, 1] == 0 < out[1, 3]


def test_a_dead_end_says_where():
    grammar = Grammar("(ab|c)*", LETTERS, eos=3)
    grammar(torch.tensor([[7]]), P.log())
    without = torch.tensor([[0.0, -1e6, 0.0, 0.0]])
    out = grammar(torch.tensor([[7, 0]]), without)
    assert out.exp().tolist() == [[0, 0, 0, 1]]
    assert grammar.stopped(torch.tensor([0, 3])).startswith("token 1: no token that '(ab|c)*'")
    assert grammar.stopped(torch.tensor([0, 1, 0])).startswith("token 3: the length was reached")
    assert grammar.stopped(torch.tensor([0, 1, 2, 3, 9])) == ""


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"'ad' cannot be met: .*\"d\""):
        Grammar("ad", LETTERS, eos=3)
    with pytest.raises(ValueError, match=r"'\(' cannot be met"):
        Grammar("(", LETTERS, eos=3)
    with pytest.raises(ValueError, match="no end token"):
        Grammar("a", LETTERS)
    grammar = Grammar("a*", LETTERS, eos=3)
    grammar(torch.tensor([[7, 7]]), P.log())
    with pytest.raises(ValueError, match="one Grammar serves one call"):
        grammar(torch.tensor([[7, 7]]), P.log())


def test_tokens_that_the_model_lacks():
    longer = Grammar("(ab|c)*", LETTERS | {9: "ab"}, eos=3)
    out = longer(torch.tensor([[7]]), P.log()).exp()
    assert_close(out, P * torch.tensor([[1, 0, 1, 1]]) / 0.8)
    with pytest.raises(ValueError, match="the end token 9 is none of the 4 of the model"):
        Grammar("(ab|c)*", LETTERS, eos=9)(torch.tensor([[7]]), P.log())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=4, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=3, pad_token_id=3
    )
    made = GPT2LMHeadModel(config).eval()
    for p in made.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.5)
    made.tie_weights()
    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 20, "top_k": 2},
        {"use_cache": False, "num_beams": 2},
    ],
    ids=["greedy", "beams", "samples", "no cache"],
)
def test_generation_stays_in_the_language(model, options):
    grammar = Grammar("(ab|c)*", LETTERS, eos=3)
    prompts = [[0, 1, 2], [2]]
    out = generate(
        model, None, prompts, guide="cfg(2)", grammar=grammar, max_new_tokens=7, seed=1, **options
    )
    assert len(out.stopped) == len(out.sequences)
    for row, stopped in zip(out.sequences[:, 3:].tolist(), out.stopped, strict=True):
        text = "".join(LETTERS[t] for t in itertools.takewhile(lambda t: t != 3, row))
        assert bool(re.fullmatch("(ab|c)*", text)) == (stopped == "")
        assert re.fullmatch("(ab|c)*a?", text)


def test_what_takes_longer_than_there_are_tokens_comes_back_as_far_as_it_got(model):
    grammar = Grammar("a{9}", LETTERS, eos=3)
    out = generate(model, None, [[1, 2], [2]], grammar=grammar, max_new_tokens=4)
    assert out.sequences[:, 2:].tolist() == [[0] * 4] * 2
    assert out.stopped == ["token 4: the length was reached before 'a{9}' was complete"] * 2


def byte_level():
    """A tokenizer whose tokens are bytes, and so parts of characters."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {c: i for i, c in enumerate(bytes_to_unicode().values())} | {"<e>": 256}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>")


def test_characters_of_several_bytes():
    tokenizer = byte_level()
    ids = tokenizer("é")["input_ids"]
    assert len(ids) == 2
    grammar, seen = Grammar("é", tokenizer), [5]
    scores = torch.zeros(1, 257)
    for token in (*ids, 256):
        assert grammar(torch.tensor([seen]), scores).argmax().item() == token
        seen.append(token)
    with pytest.raises(ValueError, match="a grammar needs a tokenizer"):
        generate(untrained(), None, [[1]], grammar="a")


def untrained():
    return GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, pad_token_id=3))


@pytest.mark.parametrize(
    "regex", ["ab|c", "(ab)*", "a*", "[^b]*", ".{3}", "(abc)*a{2}", "(b|a(b|ca)*)?", "(aab|ab)*"]
)
@pytest.mark.parametrize("longer", [{}, {4: "ab", 5: "ca", 6: "c"}])
def test_the_automaton_against_the_expression(regex, longer):
    """Tokens of several characters and several tokens of one text, all sequences up to 4."""
    texts = LETTERS | longer
    for n in range(5):
        for tokens in itertools.product(texts, repeat=n):
            text = "".join(texts[t] for t in tokens)
            complete = bool(re.fullmatch(regex, text))
            grammar = made(regex, tuple(texts.items()))
            assert (grammar.stopped(torch.tensor(tokens, dtype=torch.long)) == "") == complete


@functools.cache
def made(regex, texts):
    return Grammar(regex, dict(texts), eos=3)


@pytest.fixture(scope="module")
def shakespeare():
    return zoo.language("shakespeare-ar")


SPEECH = r"(Good|Fair) [a-z]{2,9}, (go|come)!(\nO)?"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 4, "top_k": 0},
    ],
    ids=["greedy", "beams", "samples"],
)
@pytest.mark.parametrize("guide", ["none", "cfg(2)"])
def test_a_model_without_an_end_token_ends_with_its_padding(shakespeare, guide, options):
    model, tokenizer = shakespeare
    assert tokenizer.eos_token_id is None
    prompts = ["<ROMEO>Ah! ", "<anyone>"]
    out = generate(
        model, tokenizer, prompts, guide=guide, grammar=SPEECH, max_new_tokens=30, seed=0, **options
    )
    assert out.stopped == [""] * len(out.sequences)
    for row in out.sequences[:, 5:].tolist():
        written = list(itertools.takewhile(lambda t: t != tokenizer.pad_token_id, row))
        assert re.fullmatch(SPEECH, tokenizer.decode(written))
        assert set(row[len(written) :]) <= {tokenizer.pad_token_id}
    short = generate(model, tokenizer, prompts, grammar=SPEECH, max_new_tokens=6, seed=0)
    assert all(re.fullmatch(r"(Good|Fair) [a-z]", t[-6:]) for t in short.texts)
    assert short.stopped == [f"token 6: the length was reached before {SPEECH!r} was complete"] * 2


def test_a_filter_that_forbids_all_that_may_come_ends_the_text(shakespeare):
    model, tokenizer = shakespeare
    comma = tokenizer(",")["input_ids"]
    out = generate(
        model, tokenizer, "<anyone>", grammar="Good, sir", max_new_tokens=12, bad_words_ids=[comma]
    )
    assert out.texts == ["Good"]
    assert out.stopped == ["token 4: no token that 'Good, sir' allows has probability"]
