"""PPLM on a tiny decoder in float64: gradients by differences, and generation by a plain loop."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

import fairlead as fl
from fairlead.autoregressive.past import Past
from fairlead.guidance.branch import COND, Predictions
from fairlead.guidance.context import Context, Run

WORDS = 13
TOKENS = {"vocab_size": WORDS, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1}
PROMPTS = [[5, 6, 7, 8], [3, 4]]
IDS = torch.tensor([[5, 6, 7, 8], [0, 0, 3, 4]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
BAG = [2, 9]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = GPT2LMHeadModel(GPT2Config(**TOKENS, n_positions=32, n_embd=16, n_layer=2, n_head=4))
    made = made.double().eval()
    for p in made.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.4)
    made.tie_weights()
    return made


def bag(log_p):
    return log_p[:, BAG].logsumexp(1)


def head(hidden):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(hidden.shape[1], 3, generator=generator, dtype=hidden.dtype)
    return (hidden @ weight).log_softmax(1)[:, 1]


REWARD = {"next": bag, "hidden": head}


def whole(model, ids=IDS, mask=MASK):
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)


def past_of(model, ids=IDS, mask=MASK):
    with torch.no_grad():
        out = whole(model, ids, mask)
    before = (out.hidden_states[-1] * mask[..., None])[:, :-1].sum(1)
    return Past(model, out.past_key_values, slice(0, len(ids)), ids, mask, before), out


def moved(point, past, plain, run=None):
    run = run or Run(record=False, rewards={"attribute": REWARD[point.of]})
    run.advance()
    ctx = Context(None, None, run, batch=len(plain), ndim=2, like=plain)
    ctx.look = past.look
    return point(past.moving, Predictions(COND, {COND: plain}), ctx)


def test_looking_from_the_past_as_it_was_is_the_model(model):
    past, out = past_of(model)
    log_p, hidden = past.look(past.moving, True)
    assert_close(log_p, out.logits[:, -1].log_softmax(-1))
    table = model.get_input_embeddings().weight
    embeds = torch.cat([table[IDS], (log_p.exp() @ table)[:, None]], 1)
    longer = torch.cat([MASK, torch.ones(2, 1, dtype=torch.long)], 1)
    again = model(
        inputs_embeds=embeds,
        attention_mask=longer,
        position_ids=(longer.cumsum(1) - 1).clamp(min=0),
        output_hidden_states=True,
    )
    kept = again.hidden_states[-1] * longer[..., None]
    assert_close(hidden, kept.sum(1) / longer.sum(1, keepdim=True))


@pytest.mark.parametrize("of", ["next", "hidden"])
def test_the_gradient_is_the_finite_difference(model, of):
    past, out = past_of(model)
    plain = out.logits[:, -1].log_softmax(-1).detach()
    point = fl.PPLM(of=of, kl=0.3).positive.point
    generator = torch.Generator().manual_seed(2)
    start = past.moving + 0.1 * torch.randn(
        past.moving.shape, generator=generator, dtype=torch.float64
    )
    way = torch.randn(start.shape, generator=generator, dtype=torch.float64)

    def loss(x):
        return point.loss(x, plain, past.look, REWARD[of])

    x = start.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(x).sum(), x)
    with torch.no_grad():
        h = 1e-5
        slope = (loss(start + h * way) - loss(start - h * way)) / (2 * h)
    assert_close((g * way).flatten(1).sum(1), slope, rtol=1e-6, atol=1e-8)
    padding = g[1, ..., :2, :]
    assert bool((padding == 0).all())


@pytest.mark.parametrize("of", ["next", "hidden"])
def test_steps_are_those_of_the_equation(model, of):
    past, out = past_of(model)
    plain = out.logits[:, -1].log_softmax(-1).detach()
    point = fl.PPLM(0.05, iterations=2, power=1.3, kl=0.1, of=of).positive.point
    found = moved(point, past, plain)
    d, largest = torch.zeros_like(past.moving), torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(2):
        x = (past.moving + d).requires_grad_()
        log_p, hidden = past.look(x, of == "hidden")
        divergence = (log_p.exp() * (log_p - plain)).sum(1)
        loss = 0.1 * divergence - REWARD[of](log_p if of == "next" else hidden)
        (g,) = torch.autograd.grad(loss.sum(), x)
        for row in range(2):
            for layer in range(2):
                norm = g[row, layer].square().sum().sqrt()
                if of == "next":
                    norm = largest[row, layer] = torch.maximum(norm, largest[row, layer])
                d[row, layer] -= 0.05 * g[row, layer] / norm**1.3
    assert_close(found, past.moving + d)


def test_a_bag_of_words_keeps_the_largest_norm_of_earlier_tokens(model):
    past, out = past_of(model)
    plain = out.logits[:, -1].log_softmax(-1).detach()
    point = fl.PPLM(0.05, iterations=1).positive.point
    run = Run(record=False, rewards={"attribute": bag})
    first = moved(point, past, plain, run) - past.moving
    run.rewards["attribute"] = lambda log_p: 0.5 * bag(log_p)
    second = moved(point, past, plain, run) - past.moving
    # half the gradient over the same norm, but for the divergence, whose gradient is 0 at d = 0
    assert_close(second, first / 2)


@pytest.mark.parametrize("of", ["next", "hidden"])
@pytest.mark.parametrize(
    "guide", ["pplm(0)", "pplm(iterations=0)", "pplm(m=0)"], ids=["step", "iterations", "m"]
)
def test_neutral_is_the_model(model, of, guide):
    guide = fl.guide(guide.replace(")", f", of={of!r})"))
    out = fl.generate(
        model, None, PROMPTS, guide=guide, max_new_tokens=6, rewards={"attribute": REWARD[of]}
    )
    plain = fl.generate(model, None, PROMPTS, max_new_tokens=6)
    assert out.sequences.tolist() == plain.sequences.tolist()


@pytest.mark.parametrize("of", ["next", "hidden"])
def test_generation_against_a_loop_over_whole_texts(model, of):
    """The cache that later tokens see is the unmoved one: here there is none."""
    guide = fl.PPLM(0.3, m=0.8, iterations=2, of=of)
    out = fl.generate(
        model, None, PROMPTS, guide=guide, max_new_tokens=5, rewards={"attribute": REWARD[of]}
    )
    plain = fl.generate(model, None, PROMPTS, max_new_tokens=5)
    assert out.sequences.tolist() != plain.sequences.tolist()
    for row, prompt in zip(out.sequences, PROMPTS, strict=True):
        ids = torch.tensor([prompt])
        run = Run(record=False, rewards={"attribute": REWARD[of]})
        for _ in range(5):
            past, found = past_of(model, ids, torch.ones_like(ids))
            log_p = found.logits[:, -1].log_softmax(-1).detach()
            with torch.no_grad():
                pert = past.look(moved(guide.positive.point, past, log_p, run))[0]
            fused = log_p.exp() ** 0.2 * pert.exp() ** 0.8
            ids = torch.cat([ids, (fused / fused.sum()).argmax(-1, keepdim=True)], 1)
        assert row[-5:].tolist() == ids[0, -5:].tolist()
    forwards = 2 * (2 if of == "hidden" else 1) + 1
    assert out.nfe.tolist() == [5 * (1 + forwards)] * 2
    assert out.report.backwards == 10


def test_fusion_is_a_normalised_geometric_mean():
    generator = torch.Generator().manual_seed(3)
    p, q = torch.rand(2, 4, WORDS, generator=generator, dtype=torch.float64)
    given = {"cond": p.log(), "pplm": q.log()}
    out = fl.combine(fl.PPLM(m=0.9), given, domain="logprob").exp()
    fused = p**0.1 * q**0.9
    assert_close(out, fused / fused.sum(1, keepdim=True))
    assert_close(out.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("of", ["next", "hidden"])
def test_the_attribute_rises(model, of):
    past, out = past_of(model)
    plain = out.logits[:, -1].log_softmax(-1).detach()
    point = fl.PPLM(0.02, kl=0.0, of=of).positive.point
    seen = [past.look(x, of == "hidden") for x in (past.moving, moved(point, past, plain))]
    before, after = (REWARD[of](log_p if of == "next" else hidden) for log_p, hidden in seen)
    assert bool((after > before + 1e-3).all())


@pytest.mark.parametrize("of", ["next", "hidden"])
def test_beams_keep_what_belongs_to_them(model, of):
    """A prompt in a batch has the beams that it has alone."""
    options = {"rewards": {"attribute": REWARD[of]}, "num_beams": 3, "max_new_tokens": 6}
    guide = fl.CFG(1.5) + fl.PPLM(0.3, of=of)
    both = fl.generate(model, None, PROMPTS, guide=guide, **options).sequences
    for row, prompt in zip(both, PROMPTS, strict=True):
        one = fl.generate(model, None, [prompt], guide=guide, **options).sequences[0]
        assert row[-6:].tolist() == one[-6:].tolist()


def test_what_is_missing_is_named(model):
    options = {"max_new_tokens": 2, "rewards": {"attribute": bag}}
    with pytest.raises(ValueError, match="pplm: there is no reward 'attribute': pass rewards="):
        fl.generate(model, None, PROMPTS, guide="pplm()", max_new_tokens=2)
    with pytest.raises(ValueError, match=r"a tensor of \(2,\) numbers, one a text, got \(2, 13\)"):
        fl.generate(
            model, None, PROMPTS, guide="pplm()", max_new_tokens=2, rewards={"attribute": abs}
        )
    flat = {"attribute": lambda log_p: torch.zeros(len(log_p))}
    with pytest.raises(ValueError, match="the reward 'attribute' has no derivative in what it"):
        fl.generate(model, None, PROMPTS, guide="pplm()", max_new_tokens=2, rewards=flat)
    infected = {"attribute": lambda log_p: log_p[:, 0] * torch.nan}
    with pytest.raises(FloatingPointError, match="sample 0 are NaN or infinite"):
        fl.generate(model, None, PROMPTS, guide="pplm()", max_new_tokens=2, rewards=infected)
    with pytest.raises(ValueError, match=r"keeps every token, got no cache: use fl\.generate"):
        fl.generate(model, None, PROMPTS, guide="pplm()", use_cache=False, **options)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 3}
    sliding = MistralForCausalLM(MistralConfig(**TOKENS, **small)).eval()
    with pytest.raises(ValueError, match="got DynamicSlidingWindowLayer"):
        fl.generate(sliding, None, PROMPTS, guide="pplm()", **options)
    with pytest.raises(ValueError, match="pplm: of must be one of next, hidden, got 'all'"):
        fl.PPLM(of="all")
