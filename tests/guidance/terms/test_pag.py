"""PAG: identity attention against a masked softmax, layer patterns, the decay."""

import math

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Attended, AttentionLayer
from fairlead.guidance.context import Context
from fairlead.guidance.terms.pag import IdentityAttention
from fairlead.layers import match_layers
from fairlead.models.layers import Attention
from fairlead.models.unet import UNet
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4}


class Masked(Attention):
    """Attention by hand, every logit off the diagonal at minus infinity."""

    def forward(self, q, k, v):
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        off = ~torch.eye(q.shape[-2], dtype=torch.bool)
        return logits.masked_fill(off, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize("layers", ["mid", "down.0.0", "up.0.0,mid.0", "up.*.1", "mid,up,down"])
def test_equals_a_network_with_masked_softmax(layers):
    d, masked = tiny_denoiser(dtype=torch.float64), tiny_denoiser(dtype=torch.float64)
    for layer in match_layers("test", layers, masked.attention_layers):
        layer.module.forward = Masked().forward
    s = 2.5
    out = fl.sample(d, LABEL, guide=fl.PAG(s, layers), **OPTIONS)
    weak = fl.sample(d, LABEL, guide=fl.Autoguidance(1 + s), models={"weak": masked}, **OPTIONS)
    assert_close(out.x, weak.x, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(out.x, fl.sample(d, LABEL, **OPTIONS).x, atol=1e-4)


def test_one_token_has_nothing_to_lose():
    torch.manual_seed(0)
    net = UNet(2, 1, 10, patch=2, widths=(16,), blocks=1, attention=(0,), heads=2).double().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    d = fl.Denoiser(net, fl.schedules.EDM(), "sample", shape=(1, 2, 2))
    out = fl.sample(d, LABEL, guide=fl.PAG(5.0, "mid,up,down"), **OPTIONS)
    assert_close(out.x, fl.sample(d, LABEL, **OPTIONS).x, rtol=1e-10, atol=1e-10)


def test_equal_tokens_have_nothing_to_lose():
    v = torch.randn(1, 2, 1, 4).expand(1, 2, 9, 4)
    q = torch.randn(1, 2, 9, 4)
    assert_close(Attention()(q, q, v), v)  # identity attention returns v


@pytest.mark.parametrize("kind", ["none", "keys", "matrix", "added"])
def test_joint_attention_under_a_mask(kind):
    q, k, v = torch.randn(3, 2, 2, 7, 4, dtype=torch.float64).unbind(0)
    image, text = slice(2, 7), slice(0, 2)
    seen = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    seen[1, :, :, 1] = False  # a padded token of the text
    mask = {
        "none": None,
        "keys": seen[:, :, :1],
        "matrix": seen,
        "added": torch.zeros(2, 1, 7, 7, dtype=torch.float64).masked_fill(~seen, -math.inf),
    }[kind]

    def plain(q, k, v, mask):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)

    layer = AttentionLayer("blocks.0", torch.nn.Identity(), "joint")
    call = Attended(layer, q, k, v, mask, 0.5, image, text, 0, (), plain)
    only = torch.eye(7, dtype=torch.bool)
    only[:, text] = True
    only[text] = True
    allowed = only if mask is None else only & seen
    expected = plain(q, k, v, allowed)
    assert_close(IdentityAttention("**")(call, [0, 1], None), expected)


def test_by_hand():
    c, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert torch.equal(fl.combine("pag(2)", {"cond": c, "pag": p}), torch.tensor([[3.0, -4.0]]))
    three = fl.combine("cfg(2) + pag(2)", {"cond": c, "pag": p, "null": 0 * c})
    assert torch.equal(three, torch.tensor([[4.0, -4.0]]))


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 3.0), (1, 3.0 - 0.004 * 250), (2, 1.0), (3, 0.0)]
)
def test_decay_by_hand(step, expected):
    # t falls from 1000 by 250 a step: s - decay (1000 - t), not below 0
    run = fl.Run(steps=4)
    run.step = step
    ctx = Context(torch.zeros(1, 1), None, run)
    assert fl.PAG(3.0, decay=0.004).strength_at(ctx) == pytest.approx(expected)
    pair = fl.PAG((3.0, 1.0), decay=0.004).strength_at(ctx)
    assert pair == pytest.approx((expected, max(0, 1.0 - step)))


def test_decayed_term_is_not_evaluated():
    out = fl.sample(tiny_denoiser(), LABEL, guide="pag(1, decay=0.002)", steps=4, sampler="ddim")
    assert out.nfe.tolist() == [6, 6]  # s = 1, 0.5, 0, 0


BLOCKS = {f"blocks.{i}": i for i in range(12)} | {"blocks.1.attn": "a", "mid": "m"}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("blocks.1", [1, "a"]),
        ("blocks.10", [10]),
        ("mid, blocks.3", ["m", 3]),
        (("blocks.2", "mid"), [2, "m"]),
        ("blocks.*.attn", ["a"]),
        ("blocks.*1", [1, 11, "a"]),
        ("**.attn", ["a"]),
        ("**", [*range(12), "a", "m"]),
        ("mi.", None),
        ("block", None),
        ("blocks.12", None),
    ],
)
def test_layer_patterns(pattern, found):
    if found is None:
        with pytest.raises(ValueError, match=r"pag: no attention layer matches .*blocks\.11"):
            match_layers("pag", pattern, BLOCKS)
    else:
        assert match_layers("pag", pattern, BLOCKS) == found


def test_unknown_layer_is_refused_before_sampling():
    d = tiny_denoiser()
    with pytest.raises(ValueError, match=r"pag: no self or joint .*layer matches 'middle'.*mid\.0"):
        fl.sample(d, LABEL, guide="pag(3, layers='middle')", steps=2)
    assert d.network.calls == 0


def test_only_the_perturbed_rows_change():
    d, seen = tiny_denoiser(dtype=torch.float64), []
    d.network.register_forward_hook(lambda _, a, out: seen.append(out.clone()))
    for guide in ("pag(2)", None):
        fl.sample(d, LABEL, guide=guide, steps=1, sampler="ddim", dtype=torch.float64)
    both, plain = seen
    assert_close(both[:2], plain, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(both[2:], plain, atol=1e-4)
