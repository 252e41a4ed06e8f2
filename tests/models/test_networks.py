"""The reference networks: shapes, names, and what guides hook."""

import pytest
import torch
from torch.testing import assert_close

from fairlead.models.classifier import Classifier
from fairlead.models.dit import DiT
from fairlead.models.layers import Attention, LabelEmbedding, SelfAttention
from fairlead.models.unet import UNet


def unet(**changes):
    settings = {"size": 8, "channels": 1, "patch": 1, "widths": (16, 32), "blocks": 1}
    return UNet(**settings | {"attention": (1,), "heads": 2} | changes)


def dit(**changes):
    settings = {"size": 8, "channels": 1, "patch": 2, "width": 16, "depth": 2, "heads": 2}
    return DiT(**settings | changes)


def alive(network):
    """The network with random weights where it starts at zero, so that every path shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return network.eval()


INPUTS = (torch.randn(3, 1, 8, 8), torch.tensor([-1.0, 0.0, 0.5]), torch.tensor([0, 3, 10]))


@pytest.mark.parametrize("make", [unet, dit])
def test_output_is_shaped_like_the_image_and_starts_constant(make):
    out = make()(*INPUTS)
    assert out.shape == INPUTS[0].shape
    assert_close(out, out[:1, :1, :1, :1].expand_as(out))


@pytest.mark.parametrize("make", [unet, dit])
def test_config_builds_the_same_network(make):
    network = make()
    again = type(network)(**network.config)
    shapes = {k: v.shape for k, v in network.state_dict().items()}
    assert shapes == {k: v.shape for k, v in again.state_dict().items()}


@pytest.mark.parametrize("make", [unet, dit])
def test_time_label_and_row_matter_each_for_itself(make):
    network = alive(make())
    x, t, label = INPUTS
    with torch.no_grad():
        out = network(x, t, label)
        assert not torch.allclose(network(x, t + 1, label), out)
        assert not torch.allclose(network(x, t, (label + 1) % 11), out)
        # float32 convolutions may sum in another order for another batch
        assert_close(network(x[:1], t[:1], label[:1]), out[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (unet(attention=(0, 1)), "down.0.0 down.1.0 mid.0 up.1.0 up.1.1 up.0.0 up.0.1"),
        (unet(), "down.1.0 mid.0 up.1.0 up.1.1"),
        (unet(attention=()), ""),
        (dit(), "blocks.0 blocks.1"),
    ],
)
def test_attention_layers_are_named_in_the_order_in_which_they_act(network, names):
    layers = network.attention_layers
    assert list(layers) == names.split()
    assert all(isinstance(core, Attention) for core in layers.values())
    seen = []
    for name, core in layers.items():
        core.register_forward_hook(lambda *_, name=name: seen.append(name))
    network(*INPUTS)
    assert seen == list(layers)


@pytest.mark.parametrize("make", [unet, dit])
def test_a_hook_on_a_core_changes_its_rows_alone(make):
    network = alive(make())
    core = next(iter(network.attention_layers.values()))

    def identity_for_the_last_row(module, args, out):
        return torch.cat([out[:-1], args[2][-1:]])

    with torch.no_grad():
        before = network(*INPUTS)
        handle = core.register_forward_hook(identity_for_the_last_row)
        after = network(*INPUTS)
        handle.remove()
        assert torch.equal(after[:-1], before[:-1])
        assert not torch.allclose(after[-1], before[-1])
        assert torch.equal(network(*INPUTS), before)


def test_core_is_softmax_attention_and_adds_no_weights():
    layer = SelfAttention(8, 2)
    assert set(layer.state_dict()) == {"qkv.weight", "qkv.bias", "out.weight", "out.bias"}
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    by_hand = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    assert_close(layer.core(q, k, v), by_hand)


def test_label_embedding_passes_embeddings_through():
    layer = LabelEmbedding(10, 4)
    label = torch.tensor([0, 10])
    assert torch.equal(layer(layer(label)), layer(label))


@pytest.mark.parametrize("make", [unet, dit])
def test_embedded_label_stands_for_the_index(make):
    network = alive(make())
    x, t, label = INPUTS
    with torch.no_grad():
        assert torch.equal(network(x, t, network.label(label)), network(x, t, label))


def test_time_embedding_is_the_module_called_time():
    for network in (unet(), dit()):
        assert network.time(torch.zeros(2)).shape == network.label(torch.zeros(2).long()).shape


def test_classifier_logits_are_linear_in_its_features():
    network = Classifier(size=8, channels=1, patch=1, widths=(16, 32)).eval()
    x = torch.randn(3, 1, 8, 8)
    features = network.features(x)
    assert features.shape == (3, 32)
    assert torch.equal(network.outputs(features), network(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unet(widths=(16, 20)), "widths must be multiples of 16"),
        (lambda: unet(size=9), "size must be a multiple of 2"),
        (lambda: unet(heads=3), "width 32 is no multiple of heads 3"),
        (lambda: dit(patch=3), "size 8 is no multiple of patch 3"),
        (lambda: dit(width=18), "width must be a multiple of 4"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
