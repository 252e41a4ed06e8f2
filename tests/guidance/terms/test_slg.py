"""SLG: blocks that return their input, in our networks and in diffusers', and the window."""

import pytest
import torch
from tests.test_attention import NETWORKS, TOLERANCE  # tiny networks of diffusers
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.branch import Branch
from fairlead.guidance.context import Context, Run
from fairlead.guidance.hooks import Span, perturbed
from fairlead.guidance.terms.slg import Skipped
from fairlead.layers import find_blocks
from fairlead.models.dit import DiT
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4}


def tiny_dit():
    torch.manual_seed(0)
    net = DiT(8, 1, 10, patch=4, width=16, depth=4, heads=2).double().eval().requires_grad_(False)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return fl.Denoiser(net, fl.schedules.EDM(), "sample", null={"label": 10}, shape=(1, 8, 8))


def test_equals_a_network_without_the_blocks():
    d, short = tiny_dit(), tiny_dit()
    for i in (1, 3):
        short.network.blocks[i].forward = lambda tokens, embedding: tokens
    s = 2.5
    out = fl.sample(d, LABEL, guide=fl.SLG(s, "blocks.1,blocks.3"), **OPTIONS)
    weak = fl.sample(d, LABEL, guide=fl.Autoguidance(1 + s), models={"weak": short}, **OPTIONS)
    assert_close(out.x, weak.x, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(out.x, fl.sample(d, LABEL, **OPTIONS).x, atol=1e-4)


def test_a_block_of_zeros_has_nothing_to_lose():
    d = tiny_dit()
    for p in d.network.blocks[2].modulation.parameters():
        p.zero_()  # the gates are closed
    out = fl.sample(d, LABEL, guide=fl.SLG(4.0, "blocks.2"), **OPTIONS)
    assert_close(out.x, fl.sample(d, LABEL, **OPTIONS).x, rtol=1e-9, atol=1e-9)


def test_names():
    assert list(find_blocks(tiny_dit().network)) == [f"blocks.{i}" for i in range(4)]
    assert list(find_blocks(tiny_denoiser().network)) == ["down.0.0", "mid.0", "up.0.0", "up.0.1"]
    assert find_blocks(lambda x: x) == {}
    with pytest.raises(ValueError, match=r"slg: no residual block matches 'blocks\.9'.*blocks\.3"):
        fl.sample(tiny_dit(), LABEL, guide="slg(3, 'blocks.9')", steps=2)


BLOCKS = {
    "unet": ("mid", "mid_block.attentions.0.transformer_blocks.0"),
    "sd3": ("blocks.1", "transformer_blocks.1"),
    "flux": ("blocks.1,single.0", "transformer_blocks.1"),
    "pixart": ("blocks.1", "transformer_blocks.1"),
    "wan": ("blocks.1", "blocks.1"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_blocks_of_diffusers(name):
    pytest.importorskip("diffusers")
    network, call = NETWORKS[name]()
    pattern, first = BLOCKS[name]
    d = fl.Denoiser(network, fl.schedules.EDM())
    skipped = Skipped(pattern)
    modules = skipped.modules(d)
    assert modules[0] is network.get_submodule(first)
    before = call(network)
    span = Span(1, [0], Branch("slg", perturbations=(skipped,)))
    with perturbed(d, [span], Context(None, None, Run(), batch=3, ndim=3), 3, {}):
        changed = call(network)
    assert_close(changed[[0, 2]], before[[0, 2]], **TOLERANCE)
    assert not torch.allclose(changed[1], before[1], atol=1e-3)

    plain = [m.forward for m in modules]

    def nothing(*args, **kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        two = name in ("sd3", "flux")  # these return the text's stream first
        return (kwargs["encoder_hidden_states"], hidden) if two else hidden

    for m in modules:
        m.forward = nothing
    assert_close(call(network)[1], changed[1], **TOLERANCE)
    for m, forward in zip(modules, plain, strict=True):
        m.forward = forward
    assert torch.equal(call(network), before)


def test_a_block_that_changes_the_shape_is_refused():
    skipped = Skipped("mid")
    with pytest.raises(ValueError, match=r"slg: 0 arguments of a block have the shape .*\(1, 3\)"):
        skipped({"x": torch.zeros(1, 2)}, torch.zeros(1, 3), [0], None)
    pair = {"a": torch.zeros(1, 3), "b": torch.zeros(1, 3)}
    with pytest.raises(ValueError, match="slg: 2 arguments of a block"):
        skipped(pair, (torch.zeros(1, 3), None), [0], None)


def test_the_published_window():
    # 28 steps, from 1 % to 20 %: steps 1 to 5
    guide = fl.guide("cfg(4) + (slg(2.8, 'blocks.1') | interval(0.01, 0.2))")
    out = fl.sample(tiny_dit(), LABEL, guide=guide, steps=28, sampler="ddim")
    assert out.nfe.tolist() == [2 * 28 + 5] * 2


def test_by_hand():
    c, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    out = fl.combine("slg(2, 'mid')", {"cond": c, "slg": p})
    assert torch.equal(out, torch.tensor([[3.0, -4.0]]))
    three = fl.combine("cfg(2) + slg(2, 'mid')", {"cond": c, "slg": p, "null": 0 * c})
    assert torch.equal(three, torch.tensor([[4.0, -4.0]]))
