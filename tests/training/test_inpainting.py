"""Inpainters: they begin as the network they were made of, see only what is known, and learn."""

import math

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.models.dit import DiT
from fairlead.models.inpainting import Inpainter, inpainter
from fairlead.models.unet import UNet
from fairlead.training import Recipe, edm_loss, erased, inpainting_loss, train_inpainter
from fairlead.training.data import Images

SMALL = {"size": 8, "channels": 3, "classes": 4}


def networks():
    torch.manual_seed(0)
    made = [
        UNet(**SMALL, patch=2, widths=(16,), blocks=1, attention=(0,), heads=2),
        DiT(**SMALL, patch=2, width=16, depth=1, heads=2),
    ]
    for network in made:
        for p in network.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.3)
    return [network.double().eval() for network in made]


def batch(n=3):
    g = torch.Generator().manual_seed(0)
    x, known = torch.randn(2, n, 3, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.zeros(n).double(), torch.arange(n), known, erased(n, 8, 8, g).double()


@pytest.mark.parametrize("network", networks(), ids=["unet", "dit"])
def test_begins_as_the_network(network):
    x, t, label, known, mask = batch()
    wide = Inpainter(network)
    assert_close(wide(x, t, label, known, mask), network(x, t, label), rtol=0, atol=1e-12)
    extra = sum(p.numel() for p in wide.parameters()) - sum(p.numel() for p in network.parameters())
    first = network.inputs.weight
    assert extra == first.numel() // 3 * 4  # of three channels four further ones
    assert list(wide.attention_layers) == list(network.attention_layers)


@pytest.mark.parametrize("network", networks(), ids=["unet", "dit"])
def test_sees_the_known_part_and_the_mask_alone(network):
    x, t, label, known, mask = batch()
    wide = Inpainter(network)
    torch.nn.init.normal_(wide.network.inputs.weight, std=0.3)
    out = wide(x, t, label, known, mask)
    hidden = known + (1 - mask) * torch.randn_like(known)
    assert_close(wide(x, t, label, hidden, mask), out, rtol=0, atol=1e-12)
    shown = known + mask * torch.randn_like(known)
    assert not torch.allclose(wide(x, t, label, shown, mask), out)
    assert not torch.allclose(wide(x, t, label, 0 * known, 0 * mask), wide(
        x, t, label, 0 * known, mask))  # fmt: skip


def test_loss_is_edms_at_the_beginning():
    network, (x, _, label, _, mask) = networks()[0], batch()
    sigma, n = torch.tensor([0.5, 1.0, 2.0]).double(), torch.randn_like(x)
    ours = inpainting_loss(Inpainter(network), x, label, sigma, n, mask)
    assert_close(ours, edm_loss(network, x, label, sigma, n))


def test_erased_rectangles():
    g = torch.Generator().manual_seed(0)
    masks = erased(200, 8, 6, g, (0.25, 0.5))
    for m in 1 - masks[:, 0]:
        rows, columns = m.any(1).nonzero(), m.any(0).nonzero()
        h, w = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert m.sum() == h * w
        assert 2 <= h <= 4
        assert 2 <= w <= 3
    assert (1 - masks).mean(0).min() > 0  # no corner is spared
    assert not erased(2, 8, 8, g, (1.0, 1.0)).any()
    with pytest.raises(ValueError, match=r"sides must satisfy 0 <= low <= high <= 1, got \(0.5,"):
        erased(1, 8, 8, g, (0.5, 0.2))


def test_known_part_is_returned_and_guidance_is_of_the_label_alone():
    d = inpainter(fl.load("digits"))
    known = torch.randn(2, 1, 8, 8).clamp(-1, 1)
    mask = torch.ones(2, 1, 8, 8)
    options = {"reference": known, "steps": 3, "guide": "cfg(3)"}
    sampler = "repaint(times=1, place='estimate', sampler='heun')"
    given = {"label": [1, 2], "known": known, "mask": mask}
    out = fl.sample(d, given, sampler=sampler, masks={"known": mask}, **options)
    assert torch.equal(out.x, known)
    from fairlead.condition import Condition

    null = d.null_condition(Condition(given))
    assert null["label"].tolist() == [10, 10]
    assert torch.equal(null["known"], known)


def test_learns_to_copy_what_is_known(tmp_path):
    """Pictures of one random grey: a part of them says it all, the noise nothing."""
    grey = torch.randint(0, 256, (64, 1, 1, 1), generator=torch.Generator().manual_seed(0))
    data = Images(
        grey.expand(64, 1, 8, 8).byte(), torch.zeros(64, dtype=torch.long), ("grey",), "none"
    )
    torch.manual_seed(0)
    network = Inpainter(
        UNet(size=8, channels=1, classes=1, patch=2, widths=(16,), blocks=1, attention=())
    )
    recipe = Recipe(
        minutes=math.inf, max_steps=150, batch=32, lr=5e-3, warmup=10, p_mean=2.0, p_std=0.0,
        bf16=False, ema=0.9,
    )  # fmt: skip
    train_inpainter(network, data, recipe, tmp_path)
    x0, label = data.batch(torch.arange(64))
    g = torch.Generator().manual_seed(1)
    mask, n, sigma = erased(64, 8, 8, g, (0.3, 0.7)), torch.randn(x0.shape, generator=g), 7.4
    d = fl.Denoiser(network, fl.schedules.EDM(), "edm")
    errors = [
        (d(x0 + sigma * n, sigma, {"label": label, "known": x0, "mask": m}) - x0).square().mean()
        for m in (mask, 0 * mask)
    ]
    assert errors[0] < 0.2 * errors[1]


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="Inpainter: Linear is none of UNet and DiT"):
        Inpainter(torch.nn.Linear(2, 2))
    d = fl.Denoiser(lambda x, t: x, fl.schedules.VP(), shape=(2,))
    with pytest.raises(ValueError, match="network is no module"):
        inpainter(d)
