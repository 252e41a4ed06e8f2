"""Guided generation: equal to transformers' own where that works, and right where it does not."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import fairlead as fl
from fairlead.autoregressive import GuidanceProcessor, generate, prefill

WORDS = 40
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "vocab_size": WORDS}
TOKENS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
DECODERS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=2, n_head=4, **TOKENS)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, **TOKENS)),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8, **TOKENS)
    ),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, **TOKENS)),
}
BOTH = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=WORDS,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            **TOKENS,
        )
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=WORDS,
            max_position_embeddings=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            d_model=32,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
            **TOKENS,
        )
    ),
}
PROMPTS = [[5, 6, 7, 8], [3, 4]]
_made = {}


def make(name, seed=0):
    """A random model whose predictions differ enough for greedy choices to matter."""
    if (name, seed) not in _made:
        torch.manual_seed(seed)
        model = {**DECODERS, **BOTH}[name]().eval()
        for p in model.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.3)
        model.tie_weights()
        _made[name, seed] = model
    return _made[name, seed]


@pytest.mark.parametrize("name", list(DECODERS))
@pytest.mark.parametrize("w", [1.7, 0.5])
def test_greedy_equals_the_guidance_scale_of_transformers(name, w):
    model, ids = make(name), torch.tensor([PROMPTS[0]])
    ours = generate(model, None, ids, guide=f"cfg({w})", max_new_tokens=12)
    theirs = model.generate(ids, guidance_scale=w, max_new_tokens=12, do_sample=False)
    assert ours.sequences.tolist() == theirs.tolist()
    assert ours.nfe.tolist() == [24]


def test_a_negative_prompt_takes_the_place_of_null():
    model, ids = make("llama"), torch.tensor([PROMPTS[0]])
    against = torch.tensor([[9, 10, 11, 12, 13, 14]])
    ours = generate(model, None, ids, guide="cfg(2)", negative=against, max_new_tokens=12)
    theirs = model.generate(
        ids, guidance_scale=2.0, negative_prompt_ids=against, max_new_tokens=12, do_sample=False
    )
    assert ours.sequences.tolist() == theirs.tolist()
    named = generate(
        model, None, ids, guide=fl.CFG(2.0, against="negative"), negative=against, max_new_tokens=12
    )
    assert named.sequences.tolist() == theirs.tolist()


@pytest.mark.parametrize("name", [*DECODERS, *BOTH])
def test_a_batch_is_its_prompts_one_by_one(name):
    model = make(name)
    together = generate(model, None, PROMPTS, guide="cfg(1.7)", max_new_tokens=8).sequences
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = generate(model, None, [prompt], guide="cfg(1.7)", max_new_tokens=8).sequences[0]
        assert row[-8:].tolist() == alone[-8:].tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.8, "top_k": 10},
    ],
    ids=["beams", "several beams", "samples"],
)
def test_one_cache_equals_whole_contexts(name, options):
    """Against the processor, which runs every branch anew at each token."""
    model = make(name)
    ours = generate(
        model, None, PROMPTS, guide="cfg(1.7)", max_new_tokens=7, seed=5, **options
    ).sequences
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    processor = GuidanceProcessor(model, "cfg(1.7)", ids, mask=mask, steps=7)
    torch.manual_seed(5)
    theirs = model.generate(
        ids, attention_mask=mask, max_new_tokens=7, logits_processor=[processor], **options
    )
    assert ours.tolist() == theirs.tolist()


def test_a_static_cache_gives_the_same():
    model = make("llama")
    runs = [
        generate(model, None, PROMPTS, guide="cfg(1.7)", max_new_tokens=9, **options).sequences
        for options in ({}, {"cache_implementation": "static"}, {"use_cache": False})
    ]
    assert runs[0].tolist() == runs[1].tolist() == runs[2].tolist()


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_w_1_is_the_model_at_one_evaluation_a_token(name):
    model, ids = make(name), torch.tensor([PROMPTS[0]])
    ours = generate(model, None, ids, guide="cfg(1)", max_new_tokens=8)
    assert ours.sequences.tolist() == model.generate(ids, max_new_tokens=8).tolist()
    assert ours.nfe.tolist() == [8]


def test_a_scale_for_each_prompt():
    model = make("llama")
    both = generate(model, None, PROMPTS, guide=fl.CFG((1.7, 3.0)), max_new_tokens=8, num_beams=2)
    for row, prompt, w in zip(both.sequences, PROMPTS, (1.7, 3.0), strict=True):
        one = generate(model, None, [prompt], guide=fl.CFG(w), max_new_tokens=8, num_beams=2)
        assert row[-8:].tolist() == one.sequences[0, -8:].tolist()
    with pytest.raises(ValueError, match="3 values were given for 2 prompts"):
        generate(model, None, PROMPTS, guide=fl.CFG((1.0, 2.0, 3.0)), max_new_tokens=2)


def test_a_branch_that_is_done_leaves_the_batch():
    model, rows = make("llama"), []
    forward = type(model).forward
    hook = model.model.register_forward_pre_hook(
        lambda m, a, k: rows.append(len(k["input_ids"])), with_kwargs=True
    )
    out = generate(model, None, PROMPTS, guide="cfg(3) | interval(0, 0.5)", max_new_tokens=8)
    hook.remove()
    assert rows == [4] * 4 + [2] * 4
    assert out.nfe.tolist() == [12, 12]
    assert type(model).forward is forward
    guided = generate(model, None, PROMPTS, guide="cfg(3)", max_new_tokens=4).sequences
    assert out.sequences[:, :8].tolist() == guided.tolist()


def test_a_guide_without_a_schedule_is_planned_once_ahead():
    planned = []

    class Counted(fl.CFG):
        def plan(self, ctx, gains, gain, place):
            planned.append(ctx.run.step)
            super().plan(ctx, gains, gain, place)

    generate(make("llama"), None, PROMPTS, guide=Counted(2.0), max_new_tokens=6)
    assert planned == [5, *range(6)]
    planned.clear()
    generate(
        make("llama"), None, PROMPTS, guide=Counted(2.0) | fl.Interval(0, 0.5), max_new_tokens=6
    )
    assert planned == [*range(6), *range(6)]


def test_encoder_and_decoder_against_a_loop():
    model = make("t5")
    out = generate(model, None, [PROMPTS[0]], guide="cfg(2)", max_new_tokens=6).sequences[0]
    tokens = torch.tensor([[0]])
    for _ in range(6):
        logits = {
            name: model(input_ids=torch.tensor([p]), decoder_input_ids=tokens).logits[:, -1]
            for name, p in (("cond", PROMPTS[0]), ("null", PROMPTS[0][-1:]))
        }
        best = fl.combine("cfg(2)", logits, domain="logprob")
        tokens = torch.cat([tokens, best.argmax(-1, keepdim=True)], 1)
    assert out.tolist() == tokens[0].tolist()


def test_further_models_have_caches_of_their_own():
    expert, amateur = make("llama"), make("gpt2", seed=1)
    guide = "contrastive(0.7, tau=0.5) | plausible(0.05)"
    options = {"max_new_tokens": 6, "num_beams": 2}
    out = generate(expert, None, PROMPTS, guide=guide, models={"amateur": amateur}, **options)
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    processor = GuidanceProcessor(expert, guide, ids, mask=mask, models={"amateur": amateur})
    theirs = expert.generate(ids, attention_mask=mask, logits_processor=[processor], **options)
    assert out.sequences.tolist() == theirs.tolist()
    assert out.nfe.tolist() == [12, 12]


def test_the_model_is_left_as_it_was():
    model = make("gpt2")

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, None, PROMPTS, guide="cfg(2)", max_new_tokens=3, logits_processor=[fail])
    assert not {"forward", "prepare_inputs_for_generation"} & set(model.__dict__)


def test_what_is_missing_is_named():
    model = make("gpt2")
    with pytest.raises(ValueError, match="asks for the condition state 'style': pass states="):
        generate(model, None, PROMPTS, guide=fl.CFG(2.0, against="style"))
    with pytest.raises(ValueError, match="asks for a model 'amateur': pass models="):
        generate(model, None, PROMPTS, guide="contrastive(1)")
    with pytest.raises(ValueError, match="does not serve the domain 'logprob'"):
        generate(model, None, PROMPTS, guide="cfg(2) | apg()")
    with pytest.raises(ValueError, match="texts need a tokenizer"):
        generate(model, None, "to be")
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        generate(model, None, [[1], []])
    with pytest.raises(ValueError, match=r"as many prompts as cond: \{'cond': 2, .*'null': 3"):
        generate(model, None, PROMPTS, guide="cfg(2)", negative=[[1], [2], [3]])
    torch.manual_seed(0)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"model 'amateur' has 50 tokens, .*one 40"):
        generate(model, None, PROMPTS, guide="contrastive(1)", models={"amateur": other})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be a whole number of at least 1"),
        ({"max_new_tokens": 2.5}, ValueError, "max_new_tokens must be .*, got 2.5"),
        ({"num_beams": 0}, ValueError, "num_beams must be a whole number of at least 1, got 0"),
        ({"num_return_sequences": 0}, ValueError, "num_return_sequences must be .*, got 0"),
        ({"grammar": 3}, TypeError, "grammar must be a regular expression or a Grammar, got 3"),
        ({"prompts": []}, ValueError, "there is no prompt"),
        ({"prompts": 5}, TypeError, "prompts must be texts or token ids, got 5"),
        ({"prompts": ["a", [1]]}, TypeError, "all texts or all token ids, got both"),
        ({"prompts": torch.ones(1, 2)}, TypeError, "prompt 0 must be text or whole numbers"),
        (
            {"prompts": [[1], [2, 40]]},
            ValueError,
            "prompt 1 of 'cond' has the token 40; .* 0 to 39",
        ),
        ({"prompts": [[1, -5]]}, ValueError, "prompt 0 of 'cond' has the token -5"),
        ({"guide": "cfg(2)", "negative": [[99]]}, ValueError, "of 'null' has the token 99"),
        ({"guide": fl.CFG(1.0) | fl.Fudge(1.0), "rewards": {"classifier": 3}}, TypeError, "got 3"),
    ],
    ids=str,
)
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        generate(make("llama"), None, **{"prompts": PROMPTS, "max_new_tokens": 2, **options})


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-torch.inf, ValueError, "probabilities of sample 0 add up to 0"),
        (torch.nan, FloatingPointError, "log-probabilities of sample 0 are NaN or infinite"),
        (torch.inf, FloatingPointError, "log-probabilities of sample 0 are NaN or infinite"),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=str)
def test_rows_without_probability_are_never_sampled(value, error, message, options):
    rewards = {"classifier": lambda tokens: torch.full((len(tokens),), value)}
    with pytest.raises(error, match=message):
        generate(
            make("llama"),
            None,
            PROMPTS,
            guide=fl.CFG(1.0) | fl.Fudge(1.0),
            rewards=rewards,
            max_new_tokens=2,
            **options,
        )


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=str)
def test_filters_that_exclude_all_tokens_are_named(options):
    everything = [[i] for i in range(WORDS)]
    with pytest.raises(ValueError, match="no token is left for sequence 0 at token 4: the filters"):
        generate(
            make("llama"), None, PROMPTS, max_new_tokens=2, bad_words_ids=everything, **options
        )


@pytest.mark.parametrize("scale", [(1.0, 2.0, 3.0), (2.0,), (1.5,) * 4])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("guide", ["plain", "interval", "late interval"])
def test_a_scale_for_another_number_of_prompts_is_refused(scale, options, guide):
    guides = {
        "plain": fl.CFG(scale),
        "interval": fl.CFG(scale) | fl.Interval(0, 0.5),
        "late interval": fl.CFG(scale) | fl.Interval(0.9, 1.0),
    }
    with pytest.raises(ValueError, match=f"{len(scale)} values were given for 2 prompts"):
        generate(make("llama"), None, PROMPTS, guide=guides[guide], max_new_tokens=2, **options)
    with pytest.raises(ValueError, match=r"one a sample, got shape \(2, 2\)"):
        fl.CFG(torch.ones(2, 2))


def test_no_pad_token_is_named():
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_embd=32, n_layer=1, n_head=2, eos_token_id=None, bos_token_id=None
        )
    )
    with pytest.raises(ValueError, match=r"pad token: set tokenizer\.pad_token"):
        generate(model, None, PROMPTS, max_new_tokens=1)


GOLDEN = {  # left to right, over (00, 01, 10, 11)
    2.0: [0.793403, 0.051424, 0.022167, 0.133005],
    3.0: [0.904235, 0.022792, 0.003841, 0.069132],
}


@pytest.mark.parametrize("w", GOLDEN)
def test_two_tokens_by_enumeration(w):
    p_c = torch.tensor([[0.6, 0.1], [0.1, 0.2]], dtype=torch.float64)
    p_u = (p_c + torch.tensor([[0.1, 0.2], [0.5, 0.2]], dtype=torch.float64)) / 2

    def guided(c, u):
        return fl.combine(f"cfg({w})", {"cond": c.log(), "null": u.log()}, domain="logprob").exp()

    first = guided(p_c.sum(1)[None], p_u.sum(1)[None])[0]
    second = guided(p_c / p_c.sum(1, keepdim=True), p_u / p_u.sum(1, keepdim=True))
    expected = torch.tensor(GOLDEN[w], dtype=torch.float64)
    assert_close((first[:, None] * second).flatten(), expected, rtol=0, atol=1e-6)


LONG = [torch.arange(1, 25).tolist(), torch.arange(10, 30).tolist()]


def counted(model, **options):
    """A generation, and the number of token rows of each forward."""
    rows = []
    hook = model.base_model.register_forward_pre_hook(
        lambda m, a, k: rows.append(k.get("input_ids", *a).numel()), with_kwargs=True
    )
    options = {"guide": "cfg(1.7)", "max_new_tokens": 6, "seed": 3, **options}
    out = generate(model, None, LONG, **options)
    hook.remove()
    return out, rows


OPTIONS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "three branches": {
        "guide": "cfg(1.7) + cfg(0.5, against='style')",
        "states": {"style": [[4, 5, 6]]},
    },
    "interval": {"guide": "cfg(3) | interval(0, 0.5)"},
}


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_nothing_but_the_time_changes(monkeypatch, name, options):
    model = make(name)
    ours, rows = counted(model, **options)
    repeat = options.get("num_beams", options.get("num_return_sequences", 1))
    width = 3 if "states" in options else 1
    assert rows[:2] == [2 * 24 * repeat, 2 * width * repeat * (1 + ("states" in options))]
    monkeypatch.setattr(prefill, "WORTH", 10**6)
    whole, rows = counted(model, **options)
    assert rows[0] == 2 * 24 * repeat * (2 + ("states" in options))
    assert ours.sequences.tolist() == whole.sequences.tolist()
    assert ours.nfe.tolist() == whole.nfe.tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mistral", {}),  # sliding windows
        ("llama", {"use_cache": False}),
        ("llama", {"cache_implementation": "static"}),
        ("llama", {"guide": "none"}),
        ("llama", {"negative": [[5] * 20] * 2}),
    ],
)
def test_where_it_stays_one_forward(name, options):
    _, rows = counted(make(name), **options)
    blocks = 1 if options.get("guide") == "none" else 2
    assert rows[0] == 2 * 24 * blocks


def test_a_short_prompt_against_a_long_negative_one(monkeypatch):
    """Here the first block of rows is the short one, and comes back first."""
    model, found = make("llama"), []
    for worth in (1, 10**6):
        monkeypatch.setattr(prefill, "WORTH", worth)
        out = generate(model, None, PROMPTS, guide="cfg(2)", negative=LONG, max_new_tokens=8)
        found.append(out.sequences.tolist())
    assert found[0] == found[1]
    rows = [
        generate(model, None, [p], guide="cfg(2)", negative=[n], max_new_tokens=8)
        for p, n in zip(PROMPTS, LONG, strict=True)
    ]
    assert [r[-8:] for r in found[0]] == [r.sequences[0, -8:].tolist() for r in rows]
