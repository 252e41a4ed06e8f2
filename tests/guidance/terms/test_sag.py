"""SAG: the mask from attention by hand, its limits, the state, layers of several grids."""

import pytest
import torch
from tests.guidance.terms.test_blur import once
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending
from fairlead.condition import Condition
from fairlead.guidance.blur import gaussian_blur
from fairlead.guidance.branch import COND, Predictions
from fairlead.guidance.terms.sag import Attentive, Received
from fairlead.models.unet import UNet
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def attention_of(d, x, level, condition, layer="mid.0"):
    """The attention matrix of a layer, mean over heads."""
    seen = []
    edit = Edit(d.attention_layers[layer], 0, len(x), lambda c: (seen.append(c), c.attend())[1])
    with attending([edit], len(x)):
        d.predict(x, level, condition)
    (call,) = seen
    weights = (call.q @ call.k.transpose(-1, -2) / call.q.shape[-1] ** 0.5).softmax(-1)
    return weights.mean(1)


def test_is_the_stated_formula():
    d, x = tiny_denoiser(dtype=torch.float64), noise(2, 2, 8, 8)
    condition = Condition({"label": torch.tensor([3, 5])})
    guided, level = once(d, "sag(0.8, width=1.5, kernel=5)", x, 2.0, condition)
    estimate = d.predict(x, level, condition)
    received = attention_of(d, x, level, condition).sum(1)  # over queries
    assert_close(received.mean(1), torch.ones(2, dtype=torch.float64))
    mask = (received > 1).reshape(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert 0 < mask.double().mean() < 1
    degraded = torch.where(mask, gaussian_blur(estimate, 1.5, 5), estimate)
    there = d.predict(x + degraded - estimate, level, condition)
    assert_close(guided, estimate - 0.8 * (there - degraded))


@pytest.mark.parametrize(("value", "same_as"), [(1.0, "none"), (1 + 1e-3, "blur(0.8)")])
def test_limits_of_the_mask(monkeypatch, value, same_as):
    # uniform attention blurs nothing, a mask of ones is blur guidance
    monkeypatch.setattr(
        Received,
        "__call__",
        lambda self, call: torch.full((call.q.shape[0], *call.grid), value, dtype=torch.float64),
    )
    out = fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide="sag(0.8)", **OPTIONS)
    other = fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide=same_as, **OPTIONS)
    assert_close(out.x, other.x, rtol=1e-10, atol=1e-10)


def test_uniform_attention_is_not_above_one():
    d = tiny_denoiser(dtype=torch.float64)
    core = d.attention_layers["mid.0"].module
    core.register_forward_pre_hook(lambda _, args: (0 * args[0], args[1], args[2]))
    out = fl.sample(d, LABEL, guide="sag(5)", **OPTIONS)
    assert_close(out.x, fl.sample(d, LABEL, **OPTIONS).x, rtol=1e-12, atol=1e-12)


def test_the_attention_is_that_of_the_degraded_state():
    d, x = tiny_denoiser(dtype=torch.float64), noise(2, 2, 8, 8)
    label, null = ({"label": torch.tensor(v)} for v in ([3, 5], [10, 10]))
    both, _ = once(d, "cfg(3) + sag(0.5, state='null')", x, 2.0, label)
    parts = [once(d, g, x, 2.0, c)[0] for g, c in (("cfg(3)", label), ("sag(0.5)", null))]
    assert_close(both, parts[0] + parts[1] - once(d, "none", x, 2.0, null)[0])
    out = fl.sample(d, LABEL, guide="cfg(3) + sag(0.5)", steps=3, sampler="ddim")
    assert out.nfe.tolist() == [9, 9]


@pytest.mark.parametrize("options", [{"max_batch": 1}, {"batching": "sequential"}])
def test_maps_survive_splitting(options):
    guide = "cfg(3) + sag(0.5) + (sag(0.3, state='null', layers='up') | interval(0, 0.5))"
    whole = fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide=guide, **OPTIONS)
    d = tiny_denoiser(dtype=torch.float64)
    parts = fl.sample(d, LABEL, guide=guide, **OPTIONS, **options)
    assert_close(whole.x, parts.x, rtol=1e-9, atol=1e-9)


def test_the_degraded_branch_follows_the_schedule_of_its_source():
    # under CADS the base is annealed, and what is degraded is the annealed base: one evaluation
    out = fl.sample(tiny_denoiser(), LABEL, guide="sag(0.5) | cads()", steps=3, sampler="ddim")
    assert out.nfe.tolist() == [6, 6]


def test_masks_of_videos():
    estimate = noise(2, 1, 4, 6, 6)
    received = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    received[0, 1, 2, 0] = 2.0
    capture = Received("mid")
    for maps in (received, received.flatten(0, 1)):  # all frames in one sequence, or one each
        predictions = Predictions(COND, {COND: estimate}, {(COND, capture): {"mid": [maps]}})
        mask = Attentive(COND, 1.0, 9, False, capture).mask(estimate, predictions)
        assert mask.shape == (2, 1, 4, 6, 6)
        expected = torch.zeros(2, 1, 4, 6, 6, dtype=torch.bool)
        expected[0, 0, 2:, 4:, :2] = True
        assert torch.equal(mask, expected)


def test_layers_of_several_grids_are_refused():
    net = UNet(8, 2, 10, patch=1, widths=(16, 16), blocks=1, attention=(0, 1), heads=2)
    d = fl.Denoiser(net.eval(), fl.schedules.EDM(), "sample", shape=(2, 8, 8))
    with pytest.raises(ValueError, match=r"sag: the layers 'up' differ in their grids: .*\(4, 4\)"):
        fl.sample(d, LABEL, guide="sag(0.5, layers='up')", steps=1)
    with pytest.raises(ValueError, match=r"sag: no self attention layer matches 'middle'.*mid\.0"):
        fl.sample(d, LABEL, guide="sag(0.5, layers='middle')", steps=1)


def test_clipping_moves_the_input_outside_the_mask_too(monkeypatch):
    """Noise is that of the estimate before clipping, so without a mask it is not `x`."""
    monkeypatch.setattr(
        Received, "__call__", lambda self, call: torch.zeros(call.q.shape[0], *call.grid)
    )
    d, x = tiny_denoiser(dtype=torch.float64), 3 * noise(2, 2, 8, 8)
    condition = Condition({"label": torch.tensor([3, 5])})
    estimate = d.predict(x, d.schedule.level(2.0), condition)
    assert estimate.abs().max() > 1
    clipped, level = once(d, "sag(0.8, clip=True)", x, 2.0, condition)
    moved = estimate.clamp(-1, 1) - estimate
    there = d.predict(x + moved, level, condition)
    assert_close(clipped, estimate - 0.8 * (there - estimate - moved))
    assert torch.equal(once(d, "sag(0.8)", x, 2.0, condition)[0], estimate)
