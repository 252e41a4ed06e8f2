"""MagicFusion and Face-diffuser: who is taken where, by hand and in their limits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Run
from fairlead.guidance.saliency import saliency, spatial_softmax
from fairlead.schedules import Level
from fairlead.testing import tiny_denoiser

LEVEL = Level(1.0, 1.0, 0.5)
seeds = st.integers(0, 2**31)


def images(seed, count=4, size=(2, 3, 7, 5)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dtype=torch.float64, generator=generator) for _ in range(count)]


def step(text, cond, null, expert, expert_null, run=None, **names):
    values = {"cond": cond, "null": null, "expert": expert, "expert null": expert_null, **names}
    return fl.combine(text, values, x=torch.zeros_like(cond), t=LEVEL, run=run)


def test_the_larger_response_wins_by_hand():
    """Vectors are one channel; the softmax of (2, 0) against (0, 1) picks G, then E."""
    c, n = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
    e, en = torch.tensor([[5.0, 6.0]]), torch.tensor([[5.0, 5.0]])
    out = step("cfg(3) + magic_fusion(3, pool=1)", c, n, e, en)
    assert_close(out, torch.tensor([[6.0, 5.0 + 3.0]]))


@given(seeds, st.floats(1, 9))
def test_every_pixel_is_one_of_the_two(seed, w):
    c, n, e, en = images(seed)
    out = step(f"cfg({w}) + magic_fusion({w})", c, n, e, en)
    ours, theirs = n + w * (c - n), en + w * (e - en)
    assert ((out - ours).abs().amax(1) * (out - theirs).abs().amax(1) < 1e-9).all()
    # swapping the two models complements the mask, and so takes the same
    swapped = step(f"cfg({w}) + magic_fusion({w})", e, en, c, n)
    assert_close(swapped, out)


@given(seeds)
def test_equal_models_are_cfg(seed):
    c, n = images(seed, 2)
    assert_close(step("cfg(4) + magic_fusion(4)", c, n, c, n), n + 4 * (c - n))


def test_a_flat_expert_map_leaves_the_peaks_to_the_model():
    c, n, e, en = images(3)
    out = step("cfg(4) + magic_fusion(4, k=50, k_expert=0, pool=1)", c, n, e, en)
    taken = ((out - (n + 4 * (c - n))).abs().amax(1) < 1e-9).double().mean()
    assert 0 < taken < 0.5


@pytest.mark.parametrize("size", [(2, 3, 8, 8), (1, 4, 9), (1, 2, 4, 6, 5), (3, 5), (1, 1, 1, 3)])
def test_maps_of_any_size(size):
    x = torch.randn(size)
    size_map = saliency(x)
    assert size_map.shape == (size[0], 1, *(size[2:] or size[1:]))
    assert_close(spatial_softmax(size_map, 2.0).flatten(1).sum(1), torch.ones(size[0]))


def test_smoothing_is_blind_to_the_order_only_without_a_window():
    x = torch.randn(1, 1, 6, 6)
    turned = x.flatten()[torch.arange(35, -1, -1)].reshape(1, 1, 6, 6)
    for pool, equal in ((1, True), (4, False)):
        back = saliency(x, pool).flatten().sort()[0], saliency(turned.roll(1, 3), pool).flatten()
        assert torch.allclose(back[0], back[1].sort()[0]) == equal


def faces(text, at, steps=50):
    c, n, subject, own = images(9)
    run = Run(steps=steps, check=False, record=False)
    run.step = at - 1
    values = {"cond": c, "null": n, "subject subject": subject, "subject text": own}
    out = fl.combine(text, values, x=torch.zeros_like(c), t=LEVEL, run=run)
    return out, n + 5 * (c - n), own + 5 * (subject - own)


def test_three_stages():
    text = "cfg(5) + face_diffuser(5)"
    for at in (0, 15):
        out, scene, _ = faces(text, at)
        assert torch.equal(out, scene) or torch.allclose(out, scene)
    out, scene, person = faces(text, 16)
    shares = ((out - scene).abs().amax(1) < 1e-9).double().mean()
    assert 0 < shares < 1
    assert ((out - scene).abs().amax(1) * (out - person).abs().amax(1) < 1e-9).all()
    for at in (31, 49):
        out, _, person = faces(text, at)
        assert_close(out, person)


def test_ends_are_the_two_models():
    for at in (0, 25, 49):
        out, scene, _ = faces("cfg(5) + face_diffuser(5, 1.0, 1.0)", at)
        assert_close(out, scene)
        out, _, person = faces("cfg(5) + face_diffuser(5, -1.0, -1.0)", at)
        assert_close(out, person)


def test_the_outer_stages_cost_two():
    tiny = tiny_denoiser()
    guide = fl.CFG(5.0) + fl.FaceDiffuser(5.0, model="weak", state="subject")
    states = {"subject": {"label": [3]}}
    out = fl.sample(
        tiny, {"label": [1]}, guide=guide, steps=10, sampler="ddim", states=states, seed=1
    )
    assert out.nfe.tolist() == [4 * 2 + 3 * 4 + 3 * 2]


def test_stages_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"text_until must be at most fuse_until = 0\.5, got 0\.6"):
        fl.FaceDiffuser(5.0, 0.6, 0.5)
