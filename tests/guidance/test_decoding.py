"""Recipes for tokens: identities in float64, and numbers worked out by hand or by enumeration."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead import recipes
from fairlead.guidance.recipes import DOMAINS

scales = st.floats(-1, 8)
NAMES = ("cond", "style", "text", "semantic", "none", "null")


def drawn(*names, seed=0, rows=3, size=5):
    """Log-probabilities of some branches."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(names), rows, size, generator=generator, dtype=torch.float64)
    return dict(zip(names, (2 * values).log_softmax(-1), strict=True))


def combine(guide, values, **options):
    return fl.combine(guide, values, domain="logprob", **options)


def weights(guide):
    return {b.name: a for b, a in guide.coefficients.items()}


@given(scales, scales, st.integers(0, 99))
def test_double_is_the_nested_expression(a, b, seed):
    v = drawn("cond", "style", "none", seed=seed)
    inner = v["style"] + b * (v["cond"] - v["style"])
    expected = v["none"] + a * (inner - v["none"])
    found = combine(recipes.double(["style", "text"], a, b), v)
    assert_close(found, expected.log_softmax(-1))


@given(scales, scales)
def test_double_has_the_weights_of_the_entry(a, b):
    found = weights(recipes.double(["style", "text"], a, b))
    expected = {"cond": a * b, "style": a * (1 - b), "none": 1 - a}
    for name, weight in expected.items():
        assert found.get(name, 0.0) == pytest.approx(weight, abs=1e-9)
    assert sum(found.values()) == pytest.approx(1)


def test_double_at_the_ends():
    v = drawn("cond", "style", "none")
    plain = combine("cfg(3)", {"cond": v["cond"], "null": v["none"]})
    assert_close(combine(recipes.double(["style", "text"], 3, 1), v), plain)
    only = combine("cfg(3)", {"cond": v["style"], "null": v["none"]})
    assert_close(combine(recipes.double(["style", "text"], 3, 0), v), only)
    without_null = {k: v[k] for k in ("cond", "style")}  # A = 1 asks for no null
    chain = combine("cfg(5)", {"cond": v["cond"], "null": v["style"]})
    assert_close(combine(recipes.double(["style", "text"], 1, 5), without_null), chain)


def test_double_for_each_sequence():
    v = drawn("cond", "style", "none")
    together = combine(recipes.double(["style", "text"], [1.0, 3.0, 2.0], 5.0), v)
    for i, a in enumerate((1.0, 3.0, 2.0)):
        one = combine(recipes.double(["style", "text"], a, 5.0), {k: x[[i]] for k, x in v.items()})
        assert_close(together[[i]], one)
    with pytest.raises(ValueError, match="weights are given for 3 and for 2 samples"):
        recipes.double(["style", "text"], [1.0, 2.0, 3.0], [1.0, 2.0])


def test_text_against_a_louder_style():
    # P(a = 1 | t, s) = sigmoid(t + 3 s) with t = -s, and A = 3
    def towards(t, s):
        logit = torch.tensor([[t + 3.0 * s]], dtype=torch.float64)
        return torch.cat([-logit, logit], 1) / 2

    null = torch.zeros(1, 2, dtype=torch.float64)  # t and s are even: the mean over both is even
    style = (towards(1, -1).softmax(-1) + towards(-1, -1).softmax(-1)).div(2).log()
    found = []
    for b in (1, 3, 5, 9):
        values = {"cond": towards(1, -1), "style": style, "none": null}
        found.append(combine(recipes.double(["style", "text"], 3, b), values).exp()[0, 1].item())
    assert all(x < y for x, y in pairwise(found))
    assert found[0] < 0.5 < found[2]  # style wins under plain CFG, the text at the default
    assert found == pytest.approx([0.0025, 0.087, 0.786, 0.9998], abs=5e-4)


@given(scales, scales, st.integers(0, 99))
def test_voxinstruct_is_the_nested_expression(w2, w3, seed):
    v = drawn("cond", "semantic", "text", seed=seed)  # [T, S], [0, S], [T, -]
    inner = v["semantic"] + w2 * (v["cond"] - v["semantic"])
    expected = v["text"] + w3 * (inner - v["text"])
    guide = recipes.voxinstruct(["text", "semantic"], w2, w3)
    assert_close(combine(guide, v), expected.log_softmax(-1))
    total = {"cond": w3 * w2, "semantic": w3 * (1 - w2), "text": 1 - w3}
    for name, weight in total.items():
        assert weights(guide).get(name, 0.0) == pytest.approx(weight, abs=1e-9)


def test_voxinstruct_at_the_ends():
    v = drawn("cond", "semantic", "text")
    plain = combine("cfg(3)", {"cond": v["cond"], "null": v["semantic"]})
    two = {k: v[k] for k in ("cond", "semantic")}  # a scale of 1 removes its branch
    assert_close(combine(recipes.voxinstruct(w_text=3, w_content=1), two), plain)
    other = combine("cfg(1.5)", {"cond": v["cond"], "null": v["text"]})
    two = {k: v[k] for k in ("cond", "text")}
    assert_close(combine(recipes.voxinstruct(w_text=1, w_content=1.5), two), other)
    swapped = {"cond": v["cond"], "semantic": v["text"], "text": v["semantic"]}
    turned = combine(recipes.voxinstruct(w_text=1.5, w_content=3), swapped)
    assert (turned - combine(recipes.voxinstruct(), v)).abs().max() > 0.1  # the order matters


def test_voxinstruct_on_two_independent_bits():
    a, b, w2, w3 = 1.5, 1.0, 3.0, 1.5

    def bit(logit):
        return torch.tensor([[-logit / 2, logit / 2]], dtype=torch.float64).log_softmax(-1)

    # bit 1 from the text, bit 2 from the content; T = S = 1
    given_ = {"cond": (bit(a), bit(b)), "semantic": (bit(0.0), bit(b)), "text": (bit(a), bit(0.0))}
    guide = recipes.voxinstruct(w_text=w2, w_content=w3)
    found = [combine(guide, {k: v[i] for k, v in given_.items()}).exp()[0, 1] for i in (0, 1)]
    expected = [1 / (1 + math.exp(-a * (1 + w3 * (w2 - 1)))), 1 / (1 + math.exp(-b * w3))]
    assert [x.item() for x in found] == pytest.approx(expected)
    assert expected == pytest.approx([0.9975, 0.8176], abs=5e-5)


@given(st.floats(0, 3), st.integers(0, 99))
def test_context_aware_decoding(a, seed):
    v = drawn("cond", "null", seed=seed)
    expected = (1 + a) * v["cond"] - a * v["null"]
    assert_close(combine(recipes.context_aware(a), v), expected.log_softmax(-1))


def test_the_context_wins_from_a_scale_on():
    p_c = torch.tensor([[0.45, 0.5, 0.05]]).double()
    p_u = torch.tensor([[0.08, 0.9, 0.02]]).double()
    v = {"cond": p_c.log(), "null": p_u.log()}
    l_c, l_u = (math.log(p[0, 0] / p[0, 1]) for p in (p_c, p_u))
    flip = l_u / (l_u - l_c)
    assert flip == pytest.approx(1.0455, abs=5e-5)
    assert combine("cfg(1.045)", v).argmax() == 1
    assert combine("cfg(1.05)", v).argmax() == 0
    assert_close(*combine(f"cfg({flip})", v)[0, :2].split(1))  # the two tie there
    assert combine(recipes.context_aware(0.0), v).argmax() == 1


def test_a_filter_of_both_contexts():
    v = {
        "cond": torch.tensor([[0.5, 0.3, 0.15, 0.05]]).double().log(),
        "null": torch.tensor([[0.1, 0.5, 0.1, 0.3]]).double().log(),
    }
    out = combine(recipes.context_aware(1.0, top_p=0.75), v).exp()
    assert_close(out, torch.tensor([[0.0, 1.0, 0.0, 0.0]]).double())  # {0, 1} and {1, 3}
    # in none of both: the paper's constants of 1000 decide, written out
    v["null"] = torch.tensor([[0.04, 0.06, 0.5, 0.4]]).double().log()
    l_c, l_u = v["cond"].clone(), v["null"].clone()
    l_c[0, 2:], l_u[0, :2] = -1000, 1000
    expected = (2 * l_c - l_u).log_softmax(-1).exp()
    assert_close(combine(recipes.context_aware(1.0, top_p=0.75), v).exp(), expected)
    assert_close(combine("cfg(1) | nucleus(0.75, against='null')", v), v["cond"])
    with pytest.raises(ValueError, match="nucleus: the terms before it have no branch 'style'"):
        combine("cfg(2) | nucleus(0.8, against='style')", v)


@pytest.mark.parametrize("top_p", [0.4, 0.8, 0.95])
@pytest.mark.parametrize("a", [0.5, 1.0])
def test_filters_are_those_of_the_paper(top_p, a):
    """Against the paper's constants, on many rows."""
    v = drawn("cond", "null", rows=200, size=6)

    def inside(log_p):
        p, index = log_p.exp().sort(-1, descending=True)
        return torch.zeros_like(log_p).scatter(-1, index, (p.cumsum(-1) - p < top_p).double()) > 0

    l_c = v["cond"].where(inside(v["cond"]), -1000.0)
    l_u = v["null"].where(inside(v["null"]), 1000.0)
    expected = ((1 + a) * l_c - a * l_u).softmax(-1)
    assert_close(combine(recipes.context_aware(a, top_p), v).exp(), expected, rtol=0, atol=1e-12)


def scheduled(guide, steps):
    """The scale at each step, read off one token of a row; and whether null was asked for."""
    run = fl.Run(steps=steps)
    v = {"cond": torch.tensor([[1.0, 0.0]]).double(), "null": torch.tensor([[0.0, 0.0]]).double()}
    found = [combine(guide, v, run=run, normalise="none")[0, 0].item() for _ in range(steps)]
    return found, [any(b.name == "null" for b in e.wanted) for e in run.report.entries]


@pytest.mark.parametrize(("count", "on", "off"), [(14, 0, 11), (10, 0, 10), (10, 2, 7), (7, 0, 0)])
def test_switti_by_hand(count, on, off):
    found, asked = scheduled(recipes.switti(6.0, count, on, off), count)
    expected = [1 + 6 * i / (count - 1) if on <= i < off else 1.0 for i in range(count)]
    assert found == pytest.approx(expected)
    assert asked == [w != 1 for w in expected]  # the first scale and those behind ask for none


def test_switti_without_an_end_is_var():
    assert recipes.switti(1.5, 10, off=None) == fl.guide("cfg(2.5) | ramp(0, 1)")
    assert recipes.switti(1.5, 10, off=10) == recipes.switti(1.5, 10, off=None)
    v = drawn("cond", "null")
    assert torch.equal(combine(recipes.switti(0.0, 3, off=None), v), v["cond"].log_softmax(-1))
    with pytest.raises(ValueError, match="switti: 0 <= on <= off <= scales must hold, got on=5"):
        recipes.switti(on=5, off=3)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_ssr_speech_guides_every_few_tokens(stride):
    """The counter of the released code: from 1, guided and reset when it reaches the stride."""
    counter, expected = 1, []
    for _ in range(11):
        expected.append(1.5 if counter == stride else 1.0)
        counter = 1 if counter == stride else counter + 1
    found, asked = scheduled(recipes.ssr_speech(1.5, stride), 11)
    assert found == pytest.approx(expected)
    assert asked == [w != 1 for w in expected]


def test_steve1_adds_one():
    v = drawn("cond", "null")
    expected = (7 * v["cond"] - 6 * v["null"]).log_softmax(-1)
    assert_close(combine(recipes.steve1(6.0), v), expected)
    assert recipes.steve1([0.0, 6.0]) == fl.CFG((1.0, 7.0))


def test_a_text_model_as_null():
    """ZeroMMT: 0 is the text model to the bit, 1 the adapted one."""
    v = drawn("cond", "text")
    guide = "autoguidance({}, model='text')"
    assert torch.equal(combine(guide.format(1.0), v), v["cond"].log_softmax(-1))
    assert torch.equal(combine(guide.format(0.0), v), v["text"].log_softmax(-1))
    expected = v["text"] + 1.25 * (v["cond"] - v["text"])
    assert_close(combine(guide.format(1.25), v), expected.log_softmax(-1))


@given(st.floats(0, 5), st.integers(0, 99))
def test_constants_of_a_row_change_nothing(w, seed):
    """Logits serve as well as log-probabilities, and greedy choices are the same."""
    v = drawn("cond", "null", seed=seed)
    moved = {k: x + 3.0 * i for i, (k, x) in enumerate(v.items(), 1)}
    assert_close(combine(f"cfg({w})", moved), combine(f"cfg({w})", v))


def test_an_interpolation_between_two_prompts():
    """MARINE: from the plain prompt at 0 to the one with the list of objects at 1."""
    v = drawn("cond", "plain")
    out = combine("cfg(0.7, against='plain')", v)
    assert_close(out, (v["plain"] + 0.7 * (v["cond"] - v["plain"])).log_softmax(-1))
    assert torch.equal(combine("cfg(0, against='plain')", v), v["plain"].log_softmax(-1))
    same = {"cond": v["plain"], "plain": v["plain"]}  # nothing was detected
    assert_close(combine("cfg(0.7, against='plain')", same), v["plain"])


def test_greedy_captions_in_the_limit():
    v = drawn("cond", "null", rows=20)
    assert torch.equal(combine("cfg(1e6)", v).argmax(-1), (v["cond"] - v["null"]).argmax(-1))


def temper(c, u, w):
    powers = c**w * u ** (1 - w)
    return powers / powers.sum(-1, keepdim=True)


def two_blocks(z, prompt, w, steps):
    """The exact law of two image tokens and a sound token, from the joint it is made of."""
    generator = torch.Generator().manual_seed(0)
    joint = torch.rand(2, 2, 2, generator=generator, dtype=torch.float64) + 0.1
    joint = joint / joint.sum()
    model = fl.exact.TokenTable(joint[None], torch.ones(1)).denoiser(fl.discrete.Masked(2, eps=0.0))
    law = fl.exact.token_law(
        model,
        {"label": 0},
        guide=f"unprompted({w})",
        steps=steps,
        z=torch.tensor(z),
        masks={"prompt": prompt},
    )
    return joint, law.reshape(3, 3, 3)


@pytest.mark.parametrize("w", [1.0, 2.0, 4.0])
def test_sound_from_an_image_whose_mask_is_the_null(w):
    joint, law = two_blocks([1, 0, 2], [1.0, 1.0, 0.0], w, steps=3)
    expected = temper(joint[1, 0] / joint[1, 0].sum(), joint.sum((0, 1)), w)
    assert_close(law[1, 0, :2], expected)


@pytest.mark.parametrize("w", [1.0, 2.0])
def test_an_image_from_sound_in_the_other_direction(w):
    """Two tokens: in one step with probability 1/T, else one after the other in either order."""
    steps = 4
    joint, law = two_blocks([2, 2, 1], [0.0, 0.0, 1.0], w, steps)
    cond, null = joint[..., 1] / joint[..., 1].sum(), joint.sum(-1)
    first, second = (temper(cond.sum(d), null.sum(d), w) for d in (1, 0))

    def after(d):
        c, u = (p / p.sum(1 - d, keepdim=True) for p in (cond, null))
        return temper(c.movedim(d, 0), u.movedim(d, 0), w).movedim(0, d)

    orders = (first[:, None] * after(0) + second[None] * after(1)) / 2
    together = first[:, None] * second
    assert_close(law[:2, :2, 1], together / steps + (1 - 1 / steps) * orders)


def test_they_say_where_they_serve():
    assert DOMAINS["context_aware"] == {"logprob"}
    assert DOMAINS["double"] >= {"logprob", "continuous"}
    assert DOMAINS["nested"] == {"continuous"}
