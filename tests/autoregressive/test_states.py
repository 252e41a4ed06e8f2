"""Branches of `fl.generate` beyond two prompts: several conditions, images, zeros, sound."""

import pytest
import torch
import transformers
from tests.autoregressive.test_generate import WORDS, make
from torch import nn
from transformers import (
    CLIPVisionConfig,
    EncodecConfig,
    GitConfig,
    GitForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import fairlead as fl
from fairlead import recipes
from fairlead.autoregressive import GuidanceProcessor, Zeros, generate, random_prompts

PROMPTS = [[5, 6, 7, 8], [3, 4]]
STYLE = [[9, 10, 11], [12, 13]]
SEEN = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
TEXT = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
VISION = {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
IMAGE = 39


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Untrained models of two parts complain about special tokens of the other part."""
    kept = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(kept)


def wide(model, std=0.3):
    """Weights so large that predictions differ enough for greedy choices to matter."""
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=std)
    return model.eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captioner():
    torch.manual_seed(0)
    config = GitConfig(
        vision_config=SEEN | VISION,
        num_hidden_layers=2,
        max_position_embeddings=64,
        **SEEN,
        **TEXT,
    )
    return wide(GitForCausalLM(config))


@pytest.fixture(scope="module")
def chat():
    torch.manual_seed(0)
    text = LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, **SEEN, **TEXT)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(projection_dim=16, **SEEN, **VISION),
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    return wide(LlavaForConditionalGeneration(config))


@pytest.fixture(scope="module")
def music():
    torch.manual_seed(0)
    text = T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    sound = EncodecConfig(
        hidden_size=16,
        num_filters=4,
        upsampling_ratios=[2, 2],
        codebook_size=16,
        codebook_dim=16,
        num_lstm_layers=1,
        target_bandwidths=[1.5],
    )
    codes = MusicgenDecoderConfig(
        vocab_size=16,
        num_codebooks=3,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=16,
        bos_token_id=16,
    )
    config = MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=sound.to_dict(), decoder=codes.to_dict()
    )
    model = wide(MusicgenForConditionalGeneration(config))
    for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
        setattr(model.generation_config, name, 16)
    return model


class Translator(T5ForConditionalGeneration):
    """A T5 whose encoder adds features of an image to its tokens."""

    def get_encoder(self):
        return Looking(self.encoder, self.get_input_embeddings())


class Looking:
    main_input_name = "input_ids"

    def __init__(self, encoder, embedding):
        self.encoder, self.embedding = encoder, embedding

    def __call__(self, *args, **named):
        return self.forward(*args, **named)

    def forward(
        self,
        input_ids,
        attention_mask=None,
        features=None,
        return_dict=None,
        output_attentions=None,
        output_hidden_states=None,
    ):
        embedded = self.embedding(input_ids)
        if features is not None:
            embedded = embedded + features[:, None]
        return self.encoder(inputs_embeds=embedded, attention_mask=attention_mask)


def translator(seed):
    torch.manual_seed(seed)
    config = T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **TEXT
    )
    return wide(Translator(config))


def loop(guide, of, starts, steps):
    """Greedy tokens with a whole forward for each branch: `of(name, tokens)` gives logits."""
    tokens = dict(starts)
    written = []
    for _ in range(steps):
        logits = {name: of(name, t)[:, -1].detach() for name, t in tokens.items()}
        best = fl.combine(guide, logits, domain="logprob").argmax(-1, keepdim=True)
        tokens = {name: torch.cat([t, best], 1) for name, t in tokens.items()}
        written.append(best)
    return torch.cat(written, 1)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_double_cfg_of_a_decoder(name):
    model, guide = make(name), recipes.double(["style", "text"], 1.5, 2.0)
    states = {"style": STYLE}
    out = generate(model, None, PROMPTS, guide=guide, states=states, max_new_tokens=6)
    assert out.nfe.tolist() == [18, 18]
    for i in range(2):
        starts = {"cond": PROMPTS[i], "style": STYLE[i], "none": PROMPTS[i][-1:]}
        starts = {k: torch.tensor([v]) for k, v in starts.items()}
        expected = loop(guide, lambda _, t: model(input_ids=t).logits, starts, 6)
        assert out.sequences[i, -6:].tolist() == expected[0].tolist()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_double_cfg_of_an_encoder_and_decoder(name):
    model, guide = make(name), recipes.double(["style", "text"], 1.5, 2.0)
    null = [[20, 21]]
    out = generate(
        model, None, PROMPTS, guide=guide, states={"style": STYLE}, negative=null, max_new_tokens=6
    )
    assert out.nfe.tolist() == [18, 18]
    start = model.config.decoder_start_token_id
    for i in range(2):
        read = {"cond": PROMPTS[i], "style": STYLE[i], "none": null[0]}

        def of(state, tokens, read=read):
            return model(input_ids=torch.tensor([read[state]]), decoder_input_ids=tokens).logits

        expected = loop(guide, of, dict.fromkeys(read, torch.tensor([[start]])), 6)
        assert out.sequences[i, -6:].tolist() == expected[0].tolist()


def test_double_cfg_at_its_ends():
    model = make("llama")

    def tokens(guide, **options):
        return generate(
            model, None, PROMPTS, guide=guide, max_new_tokens=6, **options
        ).sequences.tolist()

    states = {"style": STYLE}
    assert tokens(recipes.double(["style", "text"], 1.7, 1.0)) == tokens("cfg(1.7)")
    assert tokens(recipes.double(["style", "text"], 1, 1)) == tokens("none")
    chain = tokens(recipes.double(["style", "text"], 1.0, 1.7), states=states)
    assert chain == tokens("cfg(1.7, against='style')", states=states)
    both = tokens(recipes.double(["style", "text"], [1.2, 2.0], [2.0, 1.0]), states=states)
    one = [
        generate(
            model,
            None,
            [PROMPTS[i]],
            guide=recipes.double(["style", "text"], a, b),
            states={"style": [STYLE[i]]},
            max_new_tokens=6,
        ).sequences[0, -6:]
        for i, (a, b) in enumerate([(1.2, 2.0), (2.0, 1.0)])
    ]
    assert [row[-6:] for row in both] == [row.tolist() for row in one]


def test_double_cfg_under_beams_and_a_schedule():
    model, guide = make("llama"), recipes.double(["style", "text"], 1.5, 2.0)
    states = {"style": STYLE}
    options = {"num_beams": 3, "max_new_tokens": 6}
    ours = generate(model, None, PROMPTS, guide=guide, states=states, **options)
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 3, 4]])
    mask = (ids > 0).long()
    processor = GuidanceProcessor(model, guide, ids, mask=mask, states=states, steps=6)
    theirs = model.generate(ids, attention_mask=mask, logits_processor=[processor], **options)
    assert ours.sequences.tolist() == theirs.tolist()
    early = fl.Interval(0, 0.5)
    half = generate(model, None, PROMPTS, guide=guide | early, states=states, max_new_tokens=6)
    full = generate(model, None, PROMPTS, guide=guide, states=states, max_new_tokens=3)
    assert half.nfe.tolist() == [12, 12]  # style and null leave the batch after three tokens
    assert half.sequences[:, :-3].tolist() == full.sequences.tolist()


def test_states_of_several_conditions_by_any_order_of_their_names():
    model = make("llama")
    guide = recipes.nested(["a", "b", "c"], [1.5, 2.0, 1.2])
    first = {"a": STYLE, "a+b": [[14, 15], [16]]}
    second = {"a": STYLE, "b+a": [[14, 15], [16]]}
    found = [
        generate(model, None, PROMPTS, guide=guide, states=s, max_new_tokens=4).sequences.tolist()
        for s in (first, second)
    ]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match=r"asks for the condition state 'a\+b': pass states="):
        generate(model, None, PROMPTS, guide=guide, states={"a": STYLE}, max_new_tokens=4)


def test_the_phases_of_voxinstruct_are_two_calls():
    model = make("llama")
    first = generate(model, None, PROMPTS, guide="cfg(1.5)", max_new_tokens=3)
    content = [row[-3:].tolist() for row in first.sequences]
    with_text = [p + s for p, s in zip(PROMPTS, content, strict=True)]
    hidden = [p + [0] * 3 for p in PROMPTS]
    states = {
        "text": hidden,
        "semantic": [p[-1:] + s for p, s in zip(PROMPTS, content, strict=True)],
    }
    guide = recipes.voxinstruct()
    out = generate(model, None, with_text, guide=guide, states=states, max_new_tokens=4)
    assert (first.nfe.tolist(), out.nfe.tolist()) == ([6, 6], [12, 12])  # 2, then 3 a token
    for i in range(2):
        starts = {"cond": with_text[i], "text": hidden[i], "semantic": states["semantic"][i]}
        starts = {k: torch.tensor([v]) for k, v in starts.items()}
        expected = loop(guide, lambda _, t: model(input_ids=t).logits, starts, 4)
        assert out.sequences[i, -4:].tolist() == expected[0].tolist()


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_captions_away_from_no_image(captioner, pixels, options):
    start = torch.tensor([[1, 5], [1, 6]])
    images = {"cond": pixels, "null": torch.zeros_like(pixels)}

    def tokens(**named):
        named = {"negative": start, "max_new_tokens": 5, **options, **named}
        return generate(captioner, None, start, inputs={"pixel_values": images}, **named)

    out = tokens(guide="cfg(2)").sequences
    if "num_beams" not in options:
        read = lambda k, t: captioner(input_ids=t, pixel_values=images[k]).logits  # noqa: E731
        expected = loop("cfg(2)", read, dict.fromkeys(images, start), 5)
        assert out[:, 2:].tolist() == expected.tolist()
        assert tokens(guide="cfg(1)").sequences.tolist() != out.tolist()
    for i in range(2):  # each image by itself
        one = generate(
            captioner,
            None,
            start[[i]],
            guide="cfg(2)",
            negative=start[[i]],
            inputs={"pixel_values": {k: v[[i]] for k, v in images.items()}},
            max_new_tokens=5,
            **options,
        )
        assert one.sequences[0].tolist() == out[i].tolist()
    same = {"cond": pixels, "null": pixels}  # a null that is no null
    plain = tokens(guide="none").sequences
    again = generate(
        captioner,
        None,
        start,
        guide="cfg(2)",
        negative=start,
        inputs={"pixel_values": same},
        max_new_tokens=5,
        **options,
    )
    assert again.sequences.tolist() == plain.tolist()


def test_objects_in_the_prompt_and_one_image_in_both(chat, pixels):
    grounded = [[IMAGE] * 4 + [5, 6, 7], [IMAGE] * 4 + [8]]
    plain = [[IMAGE] * 4 + [6, 7], [IMAGE] * 4 + [9, 8]]
    options = {"inputs": {"pixel_values": pixels}, "max_new_tokens": 5}
    out = generate(chat, None, grounded, guide="cfg(0.7)", negative=plain, **options)
    for i in range(2):
        starts = {"cond": torch.tensor([grounded[i]]), "null": torch.tensor([plain[i]])}
        read = lambda _, t, i=i: chat(input_ids=t, pixel_values=pixels[[i]]).logits  # noqa: E731
        expected = loop("cfg(0.7)", read, starts, 5)
        assert out.sequences[i, -5:].tolist() == expected[0].tolist()
    ends = [
        generate(chat, None, p, guide=g, negative=plain, **options).sequences[:, -5:].tolist()
        for p, g in ((grounded, "cfg(0)"), (plain, "none"), (plain, "cfg(0.7)"))
    ]
    assert ends[0] == ends[1] == ends[2]  # w = 0, and an empty list of objects


def test_a_text_model_without_the_image_as_null():
    adapted, text = translator(0), translator(1)
    features = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    options = {"models": {"text": text}, "max_new_tokens": 6}
    images = {"features": {"cond": features, "text": torch.zeros_like(features)}}
    guide = "autoguidance(1.25, model='text')"
    out = generate(adapted, None, PROMPTS, guide=guide, inputs=images, **options)
    assert out.nfe.tolist() == [12, 12]
    for i in range(2):

        def of(name, tokens, i=i):
            model, given = (adapted, features[[i]]) if name == "cond" else (text, None)
            hidden = model.get_encoder()(torch.tensor([PROMPTS[i]]), features=given)
            return model(encoder_outputs=hidden, decoder_input_ids=tokens).logits

        starts = dict.fromkeys(("cond", "text"), torch.tensor([[0]]))
        assert out.sequences[i, 1:].tolist() == loop(guide, of, starts, 6)[0].tolist()
    beams = generate(
        adapted,
        None,
        PROMPTS,
        guide="autoguidance(0, model='text')",
        inputs=images,
        num_beams=3,
        **options,
    )
    theirs = generate(text, None, PROMPTS, num_beams=3, max_new_tokens=6)
    assert beams.sequences.tolist() == theirs.sequences.tolist()  # the text model itself


@pytest.mark.parametrize("seen", [True, False])
def test_zeros_behind_the_encoder(seen):
    model = make("t5")
    masks = []  # equal keys and values: what attention sees changes no number, so look
    hook = model.register_forward_pre_hook(
        lambda m, a, k: masks.append(k["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    out = generate(model, None, PROMPTS, guide="cfg(2)", negative=Zeros(seen), max_new_tokens=6)
    hook.remove()
    assert masks == [[4, 2, 4, 2] if seen else [4, 2, 0, 0]] * 6
    for i in range(2):
        hidden = model.get_encoder()(torch.tensor([PROMPTS[i]])).last_hidden_state
        mask = torch.ones(hidden.shape[:2], dtype=torch.long)
        given = {"cond": (hidden, mask), "null": (0 * hidden, mask if seen else 0 * mask)}

        def of(name, tokens, given=given):
            h, m = given[name]
            return model(encoder_outputs=(h,), attention_mask=m, decoder_input_ids=tokens).logits

        expected = loop("cfg(2)", of, dict.fromkeys(given, torch.tensor([[0]])), 6)
        assert out.sequences[i, 1:].tolist() == expected[0].tolist()
    with pytest.raises(ValueError, match=r"\['null'\] are zeros behind an encoder, but the model"):
        generate(make("gpt2"), None, PROMPTS, guide="cfg(2)", negative=Zeros())


@pytest.fixture
def codes(music, monkeypatch):
    """What the sound is made of, call by call."""
    seen = []

    def decode(codes, *_, **named):
        seen.append(named.get("audio_codes", codes)[0])
        return type("Sound", (), {"audio_values": torch.zeros(2, 1, 8)})()

    monkeypatch.setattr(music.audio_encoder, "decode", decode)
    return seen


@pytest.mark.parametrize("w", [1.2, 3.0])
@pytest.mark.parametrize("sample", [False, True])
def test_sound_equals_the_guidance_scale_of_transformers(music, codes, w, sample):
    """Codes in a delay pattern: each codebook is combined, and the pattern set afterwards."""
    ids = torch.tensor([[5, 6, 7, 8], [3, 4, 0, 0]])
    generate(
        music,
        None,
        PROMPTS,
        guide=f"cfg({w})",
        negative=Zeros(),
        max_new_tokens=8,
        do_sample=sample,
        seed=3,
    )
    options = {"max_new_tokens": 8, "do_sample": sample, "attention_mask": (ids > 0).long()}
    torch.manual_seed(3)
    music.generate(input_ids=ids, guidance_scale=w, **options)
    torch.manual_seed(3)
    music.generate(input_ids=ids, guidance_scale=None, **options)
    ours, theirs, plain = codes
    assert ours.tolist() == theirs.tolist()
    assert ours.tolist() != plain.tolist()


def test_sound_without_guidance_and_after_it(music, codes):
    ids = torch.tensor([[5, 6, 7, 8], [3, 4, 0, 0]])
    options = {"guide": "cfg(1)", "negative": Zeros(), "max_new_tokens": 8, "do_sample": False}
    one = generate(music, None, PROMPTS, **options)
    music.generate(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        guidance_scale=None,
        max_new_tokens=8,
        do_sample=False,
    )
    assert codes[0].tolist() == codes[1].tolist()
    half = generate(music, None, PROMPTS, **options | {"guide": "cfg(3) | interval(0, 0.5)"})
    assert one.nfe.tolist() == [9, 9]  # as transformers itself
    assert (half.nfe - one.nfe).tolist() == [5, 5]  # then null leaves the batch


def test_random_prompts():
    prompts = [[5, 6, 7], [8]]
    made = random_prompts(prompts, 40, seed=1)
    assert [len(row) for row in made] == [3, 1]
    again = random_prompts([prompts[1], prompts[0]], 40, seed=1)
    assert made[0][:1].tolist() == again[0].tolist()  # a function of seed and place
    assert random_prompts(prompts[:1], 40, seed=1)[0].tolist() == made[0].tolist()
    many = torch.cat(random_prompts([[0] * 500] * 4, 3))
    assert set(many.tolist()) == {0, 1, 2}
    model = make("llama")
    guide, null = recipes.ssr_speech(1.5, 2), random_prompts(PROMPTS, 40)
    out = generate(model, None, PROMPTS, guide=guide, negative=null, max_new_tokens=4)
    assert out.nfe.tolist() == [8, 8]  # its cache needs every token
    with pytest.raises(ValueError, match="random_prompts: tokens must be at least 1, got 0"):
        random_prompts(prompts, 0)


def test_two_streams_that_are_equal_are_one():
    model = make("gpt2")
    out = generate(model, None, PROMPTS, guide="cfg(4)", negative=PROMPTS, max_new_tokens=6)
    plain = generate(model, None, PROMPTS, max_new_tokens=6)
    assert out.sequences.tolist() == plain.sequences.tolist()


def test_what_is_missing_of_inputs_is_named(captioner, pixels):
    start = torch.tensor([[1], [1]])

    def with_inputs(**inputs):
        return generate(captioner, None, start, guide="cfg(2)", inputs=inputs, max_new_tokens=1)

    with pytest.raises(ValueError, match="no model takes the input 'pixels'"):
        with_inputs(pixels=pixels)
    with pytest.raises(ValueError, match="'pixel_values' is given for 'nul', which is neither"):
        with_inputs(pixel_values={"cond": pixels, "nul": pixels})
    with pytest.raises(ValueError, match="'pixel_values' of 'cond' has 1 rows for 2 prompts"):
        with_inputs(pixel_values=pixels[:1])
    with pytest.raises(ValueError, match="'pixel_values' is not given for 'cond'"):
        with_inputs(pixel_values={"null": pixels})
    with pytest.raises(ValueError, match="model 'text' has an encoder, the other has none"):
        generate(
            make("gpt2"),
            None,
            PROMPTS,
            guide="autoguidance(2, model='text')",
            models={"text": make("t5")},
        )
