"""References through self-attention: by hand on two kinds of networks, nulls, guides, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import find_attention
from fairlead.models.dit import DiT
from fairlead.models.layers import SelfAttention
from fairlead.testing import tiny_denoiser

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}  # float64, sums in another order
LABEL, EMPTY = {"label": [3, 5]}, {"label": 10}
OPTIONS = {"steps": 2, "dtype": torch.float64, "sampler": "ddim"}


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(seed=0):
    return tiny_denoiser(dtype=torch.float64, seed=seed)


def made(**options):
    return fl.with_reference(tiny(), EMPTY, name="garment", **options)


def dit():
    network = DiT(size=8, channels=2, patch=2, width=16, depth=2, heads=2).double().eval()
    for i, p in enumerate(network.requires_grad_(False).parameters()):
        p.copy_(0.3 * draws(*p.shape, seed=i))
    schedule = fl.schedules.EDM()
    return fl.Denoiser(network, schedule, "sample", {"label": 10}, shape=(2, 8, 8))


def unet():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
        attention_head_dim=4, cross_attention_dim=6,
    )  # fmt: skip
    for i, p in enumerate(network.double().eval().requires_grad_(False).parameters()):
        p.copy_(0.3 * draws(*p.shape, seed=i))

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = network

        @property
        def attention_layers(self):
            found = find_attention(network)
            return {n: a.module for n, a in found.items() if n.endswith("attn1")}

        def forward(self, x, t, label):
            text = torch.sin(label[:, None, None] + torch.arange(30.0).reshape(1, 5, 6)).double()
            return network(x, t, text).sample

    schedule = fl.schedules.DiscreteVP.scaled_linear()
    null = {"label": 10}
    return fl.Denoiser(Wrapped(), schedule, "epsilon", null, shape=(2, 8, 8))


def beside(module, stored):
    """The module with stored tokens behind its own, before any projection."""
    plain = module.forward

    def forward(tokens, *args, **kwargs):
        return plain(torch.cat([tokens, stored], 1), *args, **kwargs)[:, : tokens.shape[1]]

    module.forward = forward
    return plain


def modules(network):
    found = [m for m in network.modules() if isinstance(m, SelfAttention)]
    return found or [m for n, m in network.named_modules() if n.endswith("attn1")]


@pytest.mark.parametrize("make", [tiny, dit, unet])
@pytest.mark.parametrize("null", ["zeros", "clean zeros", "absent"])
def test_by_hand(make, null):
    d = make()
    garment, x = draws(3, 2, 8, 8), draws(3, 2, 8, 8, seed=1)
    ours = fl.with_reference(d, EMPTY, null=null)
    features = ours.read(garment)
    level = d.level(d.schedule.t_min, garment)

    def inputs(y):
        kept, handles = {}, []
        for m in modules(d.network):
            handles.append(m.register_forward_pre_hook(lambda m, a: kept.update({m: a[0]})))
        d(level.alpha * y, level, EMPTY)
        for handle in handles:
            handle.remove()
        return kept

    stored = inputs(garment)
    if null != "absent":  # the last row is null
        off = inputs(torch.zeros_like(garment))
        for m, tokens in stored.items():
            missing = torch.zeros_like(tokens) if null == "zeros" else off[m]
            stored[m] = torch.cat([tokens[:2], missing[2:]])
    condition = fl.Condition({"label": torch.tensor([3, 5, 7]), "reference": features})
    nulled = ours.null_condition(condition, ("reference",))
    condition = condition.where(torch.tensor([True, True, False]), nulled)
    out = ours(x, 1.0, condition)
    plain = d(x, 1.0, condition.only("label"))
    kept = {m: beside(m, tokens) for m, tokens in stored.items()}
    by_hand = d(x, 1.0, condition.only("label"))
    for m, forward in kept.items():
        m.forward = forward
    rows = 3 if null != "absent" else 2
    assert_close(out[:rows], by_hand[:rows], **TOLERANCE)
    assert (out - plain).flatten(1).abs().amax(1)[:rows].min() > 1e-4
    if null == "absent":
        assert_close(out[2], plain[2], rtol=0, atol=1e-14)


def test_without_the_condition_and_with_it_absent_it_is_the_model_to_the_bit():
    d, ours = tiny(), made()
    x = draws(2, 2, 8, 8)
    plain = d(x, 1.0, LABEL)
    assert torch.equal(ours(x, 1.0, LABEL), plain)
    assert torch.equal(ours(x, 1.0, {**LABEL, "garment": torch.zeros(2, ours.size)}), plain)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(len(getattr(m, h)) for m in ours.network.modules() for h in hooks)


def test_the_null_of_a_clean_zero_is_what_is_read_from_it():
    ours = made(null="clean zeros")
    assert_close(ours.null["garment"].value, ours.read(torch.zeros(1, 2, 8, 8).double())[0])
    assert made(null="zeros").null["garment"].value[0] == 1  # there, and not absent


def test_the_model_itself_as_a_reference_repeats_its_tokens():
    """Attention to two copies of the same tokens is attention to one."""
    d = tiny()
    x, level = draws(2, 2, 8, 8), d.level(1.0, torch.zeros(1))
    ours = fl.with_reference(d, {"label": 3}, t=1.0)
    features = ours.read(x, {"label": 3})
    assert_close(ours(x, 1.0, {"label": 3, "reference": features}), d(x, level, {"label": 3}))


def test_two_references_are_seen_side_by_side():
    d, x = tiny(), draws(3, 2, 8, 8)
    one = fl.with_reference(d, EMPTY, name="garment")
    two = fl.with_reference(one, EMPTY, name="face")
    garment, face = one.read(draws(3, 2, 8, 8, seed=1)), two.read(draws(3, 2, 8, 8, seed=2))
    garment[1, 0] = face[2, 0] = 0
    out = two(x, 1.0, {"label": 3, "garment": garment, "face": face})
    other = fl.with_reference(fl.with_reference(d, EMPTY, name="face"), EMPTY, name="garment")
    again = other(x, 1.0, {"label": 3, "garment": garment, "face": face})
    assert_close(out, again, **TOLERANCE)
    assert_close(out[1:2], two(x[1:2], 1.0, {"label": 3, "face": face[1:2]}), **TOLERANCE)
    assert_close(out[2:], one(x[2:], 1.0, {"label": 3, "garment": garment[2:]}), **TOLERANCE)
    assert (out[0] - one(x, 1.0, {"label": 3, "garment": garment})[0]).abs().max() > 1e-4


def test_another_encoder_is_projected_by_the_model():
    d, other = tiny(), tiny(seed=5)
    garment = draws(2, 2, 8, 8)
    mixed = fl.with_reference(d, EMPTY, encoder=other).read(garment)
    own = fl.with_reference(d, EMPTY).read(garment)
    theirs = fl.with_reference(other, EMPTY).read(garment)
    assert mixed.shape == own.shape
    assert not torch.allclose(mixed, own)
    assert not torch.allclose(mixed, theirs)
    same = fl.with_reference(d, EMPTY, encoder=tiny()).read(garment)
    assert torch.equal(same, own)


@given(st.floats(0, 10))
def test_equal_scales_are_joint_and_ones_are_conditional(w):
    d = made(null="zeros")
    condition = {**LABEL, "garment": d.read(draws(2, 2, 8, 8))}
    x = draws(2, 2, 8, 8, seed=1)
    at = {"levels": d.schedule.grid(2)[:2], "x": x, **OPTIONS}
    nested = fl.recipes.nested(["garment", "label"], [w, w])
    joint = fl.recipes.joint(["garment", "label"], w)
    a, b = (fl.sample(d, condition, guide=g, **at) for g in (nested, joint))
    assert torch.equal(a.x, b.x)
    if w == 0:
        return
    one = fl.sample(d, condition, guide=fl.recipes.nested(["garment", "label"], [1, 1]), **at)
    assert torch.equal(one.x, fl.sample(d, condition, **at).x)
    assert one.nfe.tolist() == [1, 1]


def test_a_guide_is_the_sum_of_its_states():
    d = made()
    x, features = draws(2, 2, 8, 8, seed=1), d.read(draws(2, 2, 8, 8))
    condition = {**LABEL, "garment": features}
    level = d.schedule.grid(2)[0]
    none, g, both = (
        d.predict(x, level, fl.Condition({"label": torch.tensor(label), "garment": f}))
        for label, f in (([10, 10], 0 * features), ([10, 10], features), ([3, 5], features))
    )
    seen = []
    guide = fl.recipes.nested(["garment", "label"], [2.5, 7.5])
    fl.sample(d, condition, guide=guide, x=x, callback=seen.append, **OPTIONS)
    assert_close(seen[0].denoised, none + 2.5 * (g - none) + 7.5 * (both - g), **TOLERANCE)


@pytest.mark.parametrize(
    "guide",
    [
        "nested(['garment', 'label'], [2.5, 7.5])",
        "cfg(2) + pag(2, layers='**')",
        "cfg(2) + seg(2, layers='**')",
        "cfg(2) + sag(0.5)",
        "cfg(2) + slg(2, layers='mid')",
        "cfg(2) | merge(0.5)",
        "cfg(2) | reuse(start=0.0)",
    ],
)
@pytest.mark.parametrize("null", ["absent", "zeros"])
def test_rows_of_a_batch_do_not_mix(guide, null):
    d = made(null=null)
    condition = {**LABEL, "garment": d.read(draws(2, 2, 8, 8))}
    condition["garment"][1, 0] = 0  # one sample with a garment, one without
    whole = fl.sample(d, condition, guide=guide, **{**OPTIONS, "steps": 3})
    for options in ({"batching": "sequential"}, {"max_batch": 1}, {"max_batch": 3}):
        again = fl.sample(d, condition, guide=guide, **{**OPTIONS, "steps": 3}, **options)
        assert_close(again.x, whole.x, **TOLERANCE)
    other = fl.sample(d, LABEL, guide=guide.replace("'garment', ", "").replace("2.5, ", ""),
                      **{**OPTIONS, "steps": 3})  # fmt: skip
    assert (whole.x[0] - other.x[0]).abs().max() > 1e-4
    if null == "absent":
        assert_close(whole.x[1], other.x[1], **TOLERANCE)


def test_a_perturbation_acts_on_the_layer_s_own_tokens():
    """Identity attention leaves the reference out, since no token is its own there."""
    d = made(layers="mid")
    x, level = draws(2, 2, 8, 8), d.schedule.grid(2)[0]
    condition = {**LABEL, "garment": d.read(draws(2, 2, 8, 8, seed=1))}
    seen = []
    fl.sample(d, condition, guide="pag(2, layers='mid')", x=x, callback=seen.append, **OPTIONS)
    plain = []
    fl.sample(tiny(), LABEL, guide="pag(2, layers='mid')", x=x, callback=plain.append, **OPTIONS)
    assert_close(seen[0].predictions["pag"], plain[0].predictions["pag"], **TOLERANCE)
    assert_close(seen[0].predictions["cond"], d(x, level, condition), **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "left"}, r"with_reference: no self attention layer matches 'left'; .*mid\.0"),
        ({"null": "nothing"}, "with_reference: null must be one of .*absent.*, got 'nothing'"),
        ({"name": "label"}, "with_reference: the model has a condition 'label' already"),
        ({"condition": {}}, "conditioned on 'label', which is missing"),
        ({"encoder": dit()}, r"the encoder has no attention layer 'down\.0\.0'"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fl.with_reference(tiny(), **{"condition": EMPTY, **options})


def test_features_of_another_size_are_refused():
    d = made()
    with pytest.raises(ValueError, match=rf"garment must hold {d.size} features, got \(7,\)"):
        fl.sample(d, {**LABEL, "garment": torch.ones(2, 7)}, **OPTIONS)
    with pytest.raises(
        ValueError, match=r"references must have shape \(2, 8, 8\).*got \(2, 4, 4\)"
    ):
        d.read(torch.zeros(1, 2, 4, 4))
    unknown = tiny()
    unknown.shape = None
    with pytest.raises(ValueError, match="knows no shape of a sample: give shape"):
        fl.with_reference(unknown, EMPTY)
