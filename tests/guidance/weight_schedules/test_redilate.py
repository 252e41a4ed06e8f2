"""Re-dilation and noise-damped guidance: convolutions by hand, limits, cost, clean-up."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.dilation import Dilation
from fairlead.testing import tiny_denoiser


def dilate(conv, x, factor):
    return Dilation("all", factor).on(conv, {"input": x}, conv(x), (), None)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_whole_factor_is_a_dilated_convolution(stride):
    conv, x = nn.Conv2d(2, 3, 3, stride, padding=1), torch.randn(2, 2, 9, 6)
    expected = F.conv2d(x, conv.weight, conv.bias, stride, padding=2, dilation=2)
    assert_close(dilate(conv, x, 2.0), expected)


def test_a_fraction_resizes_there_and_back():
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 6, 6)
    wide = F.interpolate(x, scale_factor=2 / 1.5, mode="bilinear")
    y = F.conv2d(wide, conv.weight, conv.bias, padding=2, dilation=2)
    assert_close(dilate(conv, x, 1.5), F.interpolate(y, (6, 6), mode="bilinear"))


def test_factor_one_changes_nothing():
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 6, 6)
    assert torch.equal(dilate(conv, x, 1.0), conv(x))


def draw(guide, **options):
    options = {"sampler": "ddim", "steps": 5, "seed": 3, **options}
    return fl.sample(tiny_denoiser(), {"label": [1, 2]}, guide=guide, **options)


def test_equal_networks_give_cfg():
    plain = draw("cfg(4)").x
    assert_close(draw("cfg(4) + noise_damped(until=1.0)").x, plain)
    both = draw("cfg(4) + noise_damped(2.0, until=1.0) | redilate(2.0, until=1.0)").x
    assert_close(both, draw("cfg(4) | redilate(2.0, until=1.0)").x)
    assert not torch.allclose(both, plain)


def test_the_formula_and_its_cost():
    """`D_u^B + w (D_c^A - D_u^A)` from three networks evaluated by themselves."""
    seen = {}
    guide = fl.guide("cfg(4) + noise_damped(until=0.5) | redilate(2.0, until=0.8)")

    def watch(step):
        seen[step.index] = step.report.entries[-1].provenance

    out = draw(guide, callback=watch)
    assert out.nfe.tolist() == [3 * 3 + 2 * 2] * 2
    assert [set(seen[i]) for i in (0, 3)] == [{"cond", "null", "damped"}, {"cond", "null"}]


def test_one_step_by_hand():
    tiny = tiny_denoiser()
    x = torch.randn(2, 2, 8, 8)
    label = torch.tensor([1, 2])
    plain = tiny(x, 2.0, {"label": [10, 10]})
    handles = [
        m.register_forward_hook(lambda m, i, o: dilate_plain(m, i[0]))
        for m in tiny.network.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1
    ]
    c, u = tiny(x, 2.0, {"label": label}), tiny(x, 2.0, {"label": [10, 10]})
    for handle in handles:
        handle.remove()
    schedule = fl.schedules.EDM(sigma_min=1.0, sigma_max=2.0)
    tiny.schedule = schedule
    guide = "cfg(4) + noise_damped(until=1.0) | redilate(2.0, until=1.0)"
    out = fl.sample(tiny, {"label": label}, guide=guide, sampler="ddim", steps=1, x=x)
    assert_close(out.x, plain + 4 * (c - u), rtol=1e-4, atol=1e-4)
    assert not any(m._forward_hooks for m in tiny.network.modules())


def dilate_plain(conv, x):
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding=2, dilation=2)


def test_progressive_factors():
    rule = fl.Redilate(4.0, until=0.8, progressive=True)
    ctx = type("Ctx", (), {"fraction": 0.0})()
    factors = []
    for i in range(5):
        ctx.fraction = i / 5
        branch = rule.branch(fl.Branch("cond"), ctx)
        factors.append(branch.perturbations[0].factor if branch.perturbations else 1)
    assert factors == [4, 3, 2, 2, 1]


def test_layers_that_match_nothing_are_listed():
    with pytest.raises(ValueError, match=r"redilate: .*'nope'.*inputs"):
        draw(fl.CFG(4.0) | fl.Redilate(2.0, layers="nope"))
