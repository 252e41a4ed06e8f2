"""AdaIN: by hand, its identities, on a tiny adapter and on one of diffusers, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending, find_attention
from fairlead.guidance.weight_schedules.adain import StyleStatistics, normalised
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4, "sampler": "ddim"}


def adapted(scale=1.0):
    d = tiny_denoiser(dtype=torch.float64, text=True, adapter=True)
    d.network.cross.core.scale = scale
    return d


def sample(guide, d=None, **options):
    return fl.sample(d or adapted(), LABEL, guide=guide, **{**OPTIONS, **options})


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    # mean 2, deviation 1; the style has 10 and 4
    text, style = (torch.tensor(t).double().reshape(1, 1, -1, 1) for t in ([1, 3], [6, 14]))
    assert normalised(text, style).flatten().tolist() == [6, 14]
    assert normalised(text.flip(2), style).flatten().tolist() == [14, 6]


@given(st.integers(0, 99), st.integers(2, 9))
def test_statistics_are_the_style_s_and_the_order_is_the_text_s(seed, n):
    text, style = draws(2, 3, 2, n, 4, seed=seed)
    out = normalised(text, style)
    assert_close(out.mean(2), style.mean(2))
    assert_close(out.std(2), style.std(2))
    assert torch.equal(out.argsort(2), text.argsort(2))
    assert_close(normalised(text, text.flip(2)), text)  # the same statistics
    assert_close(normalised(3 * text + 1, style), out)
    even = torch.ones_like(text)
    assert_close(normalised(even, style), style.mean(2, keepdim=True).expand(style.shape))


def test_half_precision_is_normalised_in_single():
    text, style = draws(2, 3, 2, 9, 4).bfloat16() * torch.tensor(1e-3, dtype=torch.bfloat16)
    out = normalised(text, style)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, normalised(text.float(), style.float()).bfloat16())


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("a", [1.0, 0.4])
def test_takes_the_place_of_the_sum(scale, a):
    d = adapted(scale)
    core = d.network.cross.core
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward(q, k, v, k_style, v_style):
        text, style = attend(q, k, v), attend(q, k_style, v_style)
        return text + scale * ((1 - a) * style + a * (normalised(text, style) - text))

    core.forward = forward
    by_hand = sample("cfg(3)", d)
    out = sample(f"cfg(3) | adain({a})", adapted(scale))
    assert_close(out.x, by_hand.x, rtol=1e-9, atol=1e-9)
    assert out.nfe.tolist() == by_hand.nfe.tolist() == [4, 4]
    one = sample(f"cfg(3) | adain({a})", adapted(scale), batching="sequential")
    assert_close(out.x, one.x, rtol=1e-9, atol=1e-9)
    plain = sample("cfg(3)", adapted(scale))
    assert torch.allclose(out.x, plain.x, atol=1e-6) == (scale == 0)


def test_neutral_and_end():
    plain, whole = sample("cfg(3)"), sample("cfg(3) | adain()")
    for off in ("adain(0)", "adain(end=0)"):
        assert torch.equal(sample(f"cfg(3) | {off}").x, plain.x)
    half = sample("cfg(3) | adain(end=0.5)")
    assert not torch.allclose(half.x, whole.x, atol=1e-9)
    assert not torch.allclose(half.x, plain.x, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_adapter_of_diffusers():
    pytest.importorskip("diffusers")
    from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0

    attention = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
    attention.set_processor(IPAdapterAttnProcessor2_0(8, 6, num_tokens=(3,), scale=1.0))
    network = nn.ModuleDict({"cross": attention}).double()
    layer = find_attention(network)["cross"]
    assert (layer.kind, layer.adapters) == ("cross", 1)
    outputs = []

    def look(call):
        outputs.append(call.attend())
        return outputs[-1]

    x, texts = draws(2, 5, 8), (draws(2, 4, 6, seed=1), [draws(2, 1, 3, 6, seed=2)])
    with attending([Edit(layer, 0, 2, look)], 2):
        attention(x, encoder_hidden_states=texts)
    text, style = outputs
    joined = normalised(text, style).transpose(1, 2).flatten(2)
    within = StyleStatistics("**", 1.0)
    with attending([Edit(layer, 0, 1, lambda call: within(call, [0], None))], 2):
        out = attention(x, encoder_hidden_states=texts)
    assert_close(out[0], attention.to_out[0](joined)[0])
    assert_close(out[1], attention(x, encoder_hidden_states=texts)[1])


def test_errors():
    with pytest.raises(ValueError, match=r"adain: a must be in \[0, 1\], got 1\.5"):
        fl.AdaIN(1.5)
    with pytest.raises(ValueError, match=r"adain: none of the layers text\.0 attends to an image"):
        sample("cfg(3) | adain()", tiny_denoiser(dtype=torch.float64, text=True))
    with pytest.raises(ValueError, match="adain: no cross attention layer matches 'middle'"):
        sample("cfg(3) | adain(layers='middle')")
