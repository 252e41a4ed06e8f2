"""Attention of networks that are not ours: found by name, changed for some rows, left intact."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending, find_attention, token_grid
from fairlead.guidance.terms.pag import IdentityAttention
from fairlead.models.dit import DiT
from fairlead.testing import tiny_network

diffusers = pytest.importorskip("diffusers")
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}  # float64, sums in another order


def alive(network):
    """Random weights everywhere, in float64."""
    network = network.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for p in network.parameters():
        p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def unet():
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=6,
    )
    x, text = normal(3, 2, 8, 8), normal(3, 5, 6)
    return alive(network), lambda n: n(x, torch.full((3,), 5.0), text).sample


def sd3():
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=4,
        pos_embed_max_size=8,
    )
    x, text, pooled = normal(3, 2, 8, 8), normal(3, 5, 6), normal(3, 4)
    return alive(network), lambda n: n(x, text, pooled, torch.full((3,), 5.0)).sample


def flux():
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=6,
        pooled_projection_dim=4,
        axes_dims_rope=(2, 2, 4),
    )
    x, text, pooled = normal(3, 16, 4), normal(3, 5, 6), normal(3, 4)
    ids = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], 1).double()

    def call(n):
        t = torch.full((3,), 0.5).double()
        return n(x, text, pooled, t, img_ids=ids, txt_ids=torch.zeros(5, 3).double()).sample

    return alive(network), call


def pixart():
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=6,
    )
    x, text = normal(3, 2, 8, 8), normal(3, 5, 6)
    none = {"resolution": None, "aspect_ratio": None}

    def call(n):
        return n(x, text, torch.full((3,), 5.0).double(), added_cond_kwargs=none).sample

    return alive(network), call


def wan():
    network = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2,
        out_channels=2,
        text_dim=6,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=16,
    )
    x, text = normal(3, 2, 3, 4, 4), normal(3, 5, 6)
    return alive(network), lambda n: n(x, torch.full((3,), 5.0), text).sample


NETWORKS = {"unet": unet, "sd3": sd3, "flux": flux, "pixart": pixart, "wan": wan}
LAYERS = {  # self- or joint-attention layers under a pattern, tokens of the image among all
    "unet": ("mid", ["mid_block.attentions.0.transformer_blocks.0.attn1"], 16, 16),
    "sd3": ("blocks.1", ["transformer_blocks.1.attn"], 16, 21),
    "flux": (
        "blocks.1,single.0",
        ["transformer_blocks.1.attn", "single_transformer_blocks.0.attn"],
        16,
        21,
    ),
    "pixart": ("blocks.1", ["transformer_blocks.1.attn1"], 16, 16),
    "wan": ("blocks.1", ["blocks.1.attn1"], 12, 12),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers deprecates parts of itself
        network, call = NETWORKS[request.param]()
    return request.param, fl.Denoiser(network, fl.schedules.EDM()), call


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def direct(network, layers, function):
    """Attention computed by hand in some layers, for the last row."""
    names = {id(network.get_submodule(n)) for n in layers}
    plain, inside = F.scaled_dot_product_attention, []
    handles = []
    for module in network.modules():
        if id(module) in names:
            handles.append(module.register_forward_pre_hook(lambda *_: inside.append(1)))
            handles.append(module.register_forward_hook(lambda *_: inside.clear()))

    def attention(query, key, value, attn_mask=None, **options):
        out = plain(query, key, value, attn_mask=attn_mask, **options)
        if inside:
            out[-1] = function(query[-1], key[-1], value[-1])
        return out

    return handles, attention


def identity_by_hand(image):
    """The image's tokens see themselves and the text: a mask on the logits."""

    def function(q, k, v):
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        off = torch.zeros(q.shape[-2], q.shape[-2], dtype=torch.bool)
        off[image, image] = True
        off &= ~torch.eye(q.shape[-2], dtype=torch.bool)
        return logits.masked_fill(off, -torch.inf).softmax(-1) @ v

    return function


def test_identity_attention_by_hand_in_every_network(case, monkeypatch):
    name, denoiser, call = case
    pattern, expected, image, tokens = LAYERS[name]
    network = denoiser.network
    identity = IdentityAttention(pattern)
    layers = identity.layers(denoiser)
    assert [layer.name for layer in layers] == expected
    before = call(network)
    with attending([Edit(a, 2, 3, lambda c: identity(c, [0], None)) for a in layers], 3):
        changed = call(network)
    assert_close(changed[:2], before[:2], **TOLERANCE)
    assert (changed[2] - before[2]).abs().max() > 1e-3

    where = slice(tokens - image, tokens) if name == "flux" else slice(0, image)
    handles, by_hand = direct(network, expected, identity_by_hand(where))
    monkeypatch.setattr(F, "scaled_dot_product_attention", by_hand)
    assert_close(call(network), changed, **TOLERANCE)
    monkeypatch.undo()
    for handle in handles:
        handle.remove()
    assert torch.equal(call(network), before)


def test_equals_the_processors_of_diffusers():
    processors = pytest.importorskip("diffusers.models.attention_processor")
    for make, cls in (
        (unet, processors.PAGIdentitySelfAttnProcessor2_0),
        (sd3, processors.PAGJointAttnProcessor2_0),
    ):
        network, call = make()
        pattern, (name,), *_ = LAYERS[make.__name__]
        denoiser = fl.Denoiser(network, fl.schedules.EDM())
        identity = IdentityAttention(pattern)
        edits = [
            Edit(a, 0, 3, lambda c, own=identity: own(c, [], None))
            for a in identity.layers(denoiser)
        ]
        with attending(edits, 3):
            ours = call(network)
        layer, own = network.get_submodule(name), cls()

        def perturbed(attn, hidden, encoder=None, mask=None, own=own, **kwargs):
            # diffusers perturbs the second half of the batch
            encoder = kwargs.get("encoder_hidden_states", encoder)
            twice = None if encoder is None else torch.cat([encoder] * 2)
            out = own(attn, torch.cat([hidden] * 2), twice)
            return tuple(o[3:] for o in out) if isinstance(out, tuple) else out[3:]

        layer.processor = perturbed
        assert_close(call(network), ours, **TOLERANCE)


def test_kinds_and_tokens(case):
    name, denoiser, call = case
    layers = denoiser.attention_layers
    seen = {}
    edits = [Edit(a, 0, 3, lambda c: (seen.setdefault(c.layer.name, c), c.attend())[1])
             for a in layers.values()]  # fmt: skip
    spatial = {"flux": (4, 4), "wan": (3, 4, 4)}.get(name, (8, 8))
    before = call(denoiser.network)
    with attending(edits, 3, spatial):
        assert_close(call(denoiser.network), before, **TOLERANCE)
    assert set(seen) == set(layers)
    for layer in layers.values():
        attended = seen[layer.name]
        texts = range(attended.k.shape[-2])[attended.text or slice(0, 0)]
        assert len(texts) == (0 if layer.kind == "self" else 5), layer.name
        assert attended.grid == ((3, 2, 2) if name == "wan" else (4, 4))
        out = attended.probabilities() @ attended.v
        assert_close(out, attended.attend(), **TOLERANCE)
    kinds = {n.rpartition(".")[2]: a.kind for n, a in layers.items()}
    expected = {"attn1": "self", "attn2": "cross", "attn": "joint"}
    assert kinds == {k: v for k, v in expected.items() if k in kinds}


def test_our_networks_name_their_cores():
    assert {a.kind for a in find_attention(tiny_network()).values()} == {"self"}
    assert list(find_attention(DiT(size=8, patch=4, width=8, depth=2, heads=2))) == [
        "blocks.0",
        "blocks.1",
    ]
    assert find_attention(lambda x: x) == {}


def test_edits_nest_and_leave_nothing(case):
    _, denoiser, call = case
    network = denoiser.network
    layer = next(iter(denoiser.attention_layers.values()))
    order = []

    def note(name):
        return lambda c: (order.append(name), c.attend(v=2 * c.v))[1]

    with attending([Edit(layer, 0, 3, note("inner")), Edit(layer, 0, 3, note("outer"))], 3):
        four = call(network)
    assert order == ["outer", "inner"]
    with attending([Edit(layer, 0, 3, lambda c: c.attend(v=4 * c.v))], 3):
        assert_close(call(network), four, **TOLERANCE)

    def fail(attended):
        raise KeyError("on purpose")

    before = call(network)
    with pytest.raises(KeyError), attending([Edit(layer, 0, 3, fail)], 3):
        call(network)
    assert torch.equal(call(network), before)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
    assert not any(len(getattr(m, h)) for m in network.modules() for h in hooks)


def test_a_block_inside_another_acts_beside_it():
    network = tiny_network()
    layer = find_attention(network)["mid.0"]
    arguments = torch.randn(3, 2, 8, 8), torch.ones(3), torch.arange(3)
    order = []

    def note(name):
        return lambda c: (order.append((name, c.rows.start)), c.attend(v=2 * c.v))[1]

    with attending([Edit(layer, 1, 3, note("around"))], 3):
        with attending([Edit(layer, 0, 3, note("inside"))], 3):
            four = network(*arguments)
        assert order == [("inside", 0), ("around", 1), ("inside", 1)]
        order.clear()
        with attending([Edit(layer, 0, 3, note("outermost"))], 3, outermost=True):
            assert torch.equal(network(*arguments), four)
        assert order == [("outermost", 0), ("outermost", 1), ("around", 1)]
        order.clear()
        network(*arguments)
        assert order == [("around", 1)]
        with (
            pytest.raises(ValueError, match=r"'mid\.0': edits of a call of 2 rows inside one of 3"),
            attending([Edit(layer, 0, 2, note("other"))], 2),
        ):
            raise AssertionError("not reached")
    factors = [Edit(layer, a, b, lambda c, f=f: c.attend(v=f * c.v)) for a, b, f in
               ((0, 1, 2), (1, 3, 4))]  # fmt: skip
    with attending(factors, 3):
        assert torch.equal(network(*arguments), four)


def test_other_threads_see_the_plain_network():
    network, call = unet()
    layer = find_attention(network)["mid_block.attentions.0.transformer_blocks.0.attn1"]
    before, other = call(network), []
    with attending([Edit(layer, 0, 3, lambda c: c.v)], 3):
        thread = threading.Thread(target=lambda: other.append(call(network)))
        thread.start()
        thread.join()
    assert torch.equal(other[0], before)


class Explicit(nn.Module):
    """Attention that multiplies its matrices itself."""

    def forward(self, q, k, v):
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def test_a_core_that_attends_in_its_own_way_is_served_from_its_arguments():
    network = Explicit()
    network.attention_layers = {"mid": network}
    (layer,) = find_attention(network).values()
    q, k, v = normal(3, 2, 2, 4, 5).unbind(0)
    with attending([Edit(layer, 1, 2, lambda c: c.v)], 2):
        out = network(q, k, v)
    assert torch.equal(out[0], network(q, k, v)[0])
    assert torch.equal(out[1], v[1])
    with attending([Edit(layer, 1, 2, lambda c: c.attend(q=2 * c.q))], 2):
        changed = network(q, k, v)
    assert torch.equal(changed, torch.cat([out[:1], network(2 * q[1:], k[1:], v[1:])]))


def test_a_layer_out_of_reach_is_named():
    network, call = unet()
    layer = find_attention(network)["mid_block.attentions.0.transformer_blocks.0.attn1"]
    layer.module.set_processor(diffusers.models.attention_processor.AttnProcessor())
    with (
        pytest.raises(ValueError, match=r"'mid_block.*attn1': Attention does not call .*processor"),
        attending([Edit(layer, 0, 3, lambda c: c.v)], 3),
    ):
        call(network)
    with (
        pytest.raises(ValueError, match="3 rows are no multiple of the batch of 2"),
        attending([Edit(find_attention(network)[layer.name.replace("attn1", "attn2")], 0, 2,
                        lambda c: c.attend())], 2),
    ):  # fmt: skip
        call(network)


@pytest.mark.parametrize(
    ("tokens", "spatial", "grid"),
    [
        (16, (8, 8), (4, 4)),
        (64, (8, 8), (8, 8)),
        (15, (9, 5), (5, 3)),  # patch 2, rounded up
        (6, (4, 6), (2, 3)),
        (12, (3, 4, 4), (3, 2, 2)),
        (4, (3, 4, 4), (2, 2)),  # one frame
        (8, (16,), (8,)),
        (1, (8, 8), (1, 1)),
    ],
)
def test_token_grid(tokens, spatial, grid):
    assert token_grid(tokens, spatial) == grid


@pytest.mark.parametrize("spatial", [(8, 8), (), (4,)])
def test_tokens_that_form_no_grid(spatial):
    with pytest.raises(ValueError, match=r"sag: 17 tokens form no grid .*grid=\(h, w\)"):
        token_grid(17, spatial, "sag")
