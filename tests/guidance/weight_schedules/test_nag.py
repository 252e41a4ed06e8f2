"""NAG: the blend by hand, its limits, cross- and joint attention of diffusers, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.test_attention import NETWORKS, TOLERANCE, normal
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending
from fairlead.guidance.weight_schedules.nag import Extrapolated
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4, "negative": {"label": [4, 6]}}


def sample(guide, **options):
    return fl.sample(
        tiny_denoiser(dtype=torch.float64, text=True), LABEL, guide=guide, **{**OPTIONS, **options}
    )


def blend(phi, tau, a, positive, negative, order=1):
    return Extrapolated("**", phi, tau, a, order).blend(positive, negative)


def test_by_hand():
    # one token, two heads of one channel: Z+ = (1, 1), Z- = (0, 2), phi = 4: Z~ = (5, -3), R = 4
    p, n = (torch.tensor(z).double().reshape(1, 2, 1, 1) for z in ([1.0, 1.0], [0.0, 2.0]))
    assert_close(blend(4.0, 8.0, 1.0, p, n).flatten(), torch.tensor([5.0, -3.0]).double())
    assert_close(blend(4.0, 2.5, 1.0, p, n).flatten(), torch.tensor([5.0, -3.0]).double() * 2.5 / 4)
    half = torch.tensor([0.5 * 5 * 2.5 / 4 + 0.5, -0.5 * 3 * 2.5 / 4 + 0.5]).double()
    assert_close(blend(4.0, 2.5, 0.5, p, n).flatten(), half)
    growth = (34 / 2) ** 0.5  # in the other norm
    other = torch.tensor([5.0, -3.0]).double() * 2.5 / growth
    assert_close(blend(4.0, 2.5, 1.0, p, n, order=2).flatten(), other)


@given(st.floats(0, 20), st.floats(0.1, 5), st.floats(0, 1), st.integers(0, 99))
def test_identities_of_the_blend(phi, tau, a, seed):
    p, n = torch.randn(
        2, 3, 2, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    assert torch.equal(blend(phi, tau, 0.0, p, n), p)
    assert_close(blend(0.0, 1 + tau, a, p, n), p)
    assert_close(blend(phi, 1 + tau, a, p, p), p)
    assert_close(blend(phi, float("inf"), a, p, n), p + a * phi * (p - n))
    full = blend(phi, tau, 1.0, p, n)
    size, before = (z.abs().sum((1, 3)) for z in (full, p))
    raw = (p + phi * (p - n)).abs().sum((1, 3))
    assert_close(size, torch.minimum(raw, tau * before))
    zero = torch.zeros_like(p)
    assert blend(phi, tau, a, zero, zero).isfinite().all()


@pytest.mark.parametrize("guide", ["none | nag(0)", "none | nag(4, a=0)", "none | nag(4, end=0)"])
def test_neutral_settings_are_the_model_to_the_bit(guide):
    assert torch.equal(sample(guide).x, sample("none").x)


def test_a_negative_that_equals_the_condition_changes_nothing():
    same = sample("none | nag(4)", negative=LABEL)
    assert_close(same.x, sample("none").x, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(sample("none | nag(4)").x, sample("none").x, atol=1e-3)


def test_cross_attention_is_extrapolated_before_the_projection():
    d = tiny_denoiser(dtype=torch.float64, text=True)
    core = d.network.cross.core
    plain = type(core).forward
    table = d.network.tokens(torch.tensor([4, 6])).double()

    def forward(q, k, v):
        texts = d.network.cross.key(table), d.network.cross.value(table)
        k2, v2 = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in texts)
        return blend(4.0, 2.5, 0.25, plain(core, q, k, v), plain(core, q, k2, v2))

    core.forward = forward
    by_hand = fl.sample(d, LABEL, **OPTIONS)
    out = sample("none | nag(4)")
    assert_close(out.x, by_hand.x, rtol=1e-9, atol=1e-9)
    assert out.nfe.tolist() == sample("none").nfe.tolist()


def test_ends_and_beside_cfg():
    half, whole = sample("none | nag(4, end=0.5)"), sample("none | nag(4)")
    assert not torch.allclose(half.x, whole.x, atol=1e-6)  # the last step has little noise
    both = sample("cfg(3) | nag(4)")
    assert both.nfe.tolist() == [6, 6]
    one = sample("cfg(3) | nag(4)", batching="sequential")
    assert_close(both.x, one.x, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(sample("none | nag(4, against='null')").x, whole.x, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_layers_of_diffusers(name):
    """In each layer, against attention of two plain calls; then the whole network."""
    pytest.importorskip("diffusers")
    network, call = NETWORKS[name]()
    d = fl.Denoiser(network, fl.schedules.EDM())
    within = Extrapolated("**", 4.0, 2.5, 0.25, 1)
    layers = within.layers(d)
    assert layers
    seen = []

    def function(c):
        if c.text is None or (c.text.stop - c.text.start) % 2:
            return c.attend()
        out = within(c, [0], None)
        seen.append(c.layer.name)
        middle = (c.text.start + c.text.stop) // 2
        rows = range(c.k.shape[-2])
        halves = [[*rows[c.text.start : middle]], [*rows[middle : c.text.stop]]]
        images = [*range(c.q.shape[-2])[c.image]]
        joint = c.layer.kind == "joint"
        z = []
        for half in halves:
            keys = half + images if joint else half
            logits = c.q @ c.k[..., keys, :].transpose(-1, -2) * c.scale
            mask = c.mask
            if mask is not None:
                logits = logits + mask[..., keys]
            z.append(logits.softmax(-1) @ c.v[..., keys, :])
            if joint:
                assert_close(out[..., half, :], z[-1][..., half, :], **TOLERANCE)
        images = [i for i in images if i < c.q.shape[-2]]
        guided = within.blend(z[0][..., images, :], z[1][..., images, :])
        assert_close(out[..., images, :], guided, **TOLERANCE)
        return out

    # the texts of these networks have 5 tokens: a sixth makes two halves of 3
    longer = {6: normal(3, 6, 6)}

    def lengthen(module, args, kwargs):
        def grown(t):
            if isinstance(t, torch.Tensor) and t.shape == (3, 5, 6):
                return longer[6]
            if isinstance(t, torch.Tensor) and t.shape == (5, 3):
                return t.new_zeros(6, 3)
            return t

        return tuple(map(grown, args)), {k: grown(v) for k, v in kwargs.items()}

    handle = network.register_forward_pre_hook(lengthen, with_kwargs=True)
    before = call(network)
    with attending([Edit(a, 1, 2, function) for a in layers], 3):
        changed = call(network)
    handle.remove()
    assert set(seen) == {a.name for a in layers}
    assert_close(changed[[0, 2]], before[[0, 2]], **TOLERANCE)
    assert not torch.allclose(changed[1], before[1], atol=1e-3)


def test_errors():
    d = tiny_denoiser(text=True)
    with pytest.raises(ValueError, match=r"nag: no cross or joint .*layer matches 'mid'.*text\.0"):
        fl.sample(d, LABEL, guide="none | nag(4, layers='mid')", steps=1)
    with pytest.raises(ValueError, match="asks for the condition state 'negative'"):
        fl.sample(d, LABEL, guide="none | nag(4)", steps=1)
    short = {"label": torch.zeros(2, 3, 8)}
    with pytest.raises(
        ValueError, match=r"nag: label of the negative .*\(2, 4, 8\), got \(2, 3, 8"
    ):
        fl.sample(d, LABEL, guide="none | nag(4)", negative=short, steps=1)
    with pytest.raises(ValueError, match="nag: order must be 1 or 2, got 3"):
        fl.NAG(4.0, order=3)
    assert d.network.calls == 0
