"""Side networks: the branches that run them, to the bit, what they cost, and their scales."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead import nulls, recipes
from fairlead.guidance.composition.chains import guess_scales
from fairlead.schedules import VP

DOUBLE = torch.float64


class Main(nn.Module):
    """Two layers to which residuals are added; `None` adds nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6).double(), nn.Linear(6, 4).double()

    def forward(self, x, t, residuals, text):
        h = torch.tanh(self.first(x) + text)
        h = h if residuals is None else h + residuals[0]
        out = self.second(h)
        return out if residuals is None else out + residuals[1]


class Side(nn.Module):
    """Counts its rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two = nn.Linear(4, 6).double(), nn.Linear(4, 4).double()
        self.rows = self.calls = 0

    def forward(self, x, t, pose, text):
        self.rows, self.calls = self.rows + len(x), self.calls + 1
        return [torch.sin(self.one(x + pose)) + text, self.two(x * pose)]


def model(scales=1.0):
    main, side = Main(), Side()
    null = {"text": nulls.zeros(), "pose": nulls.hidden("pose_on")}
    network = fl.adapters.SideNetwork(main, side, "pose", scales=scales)
    return fl.Denoiser(network, VP(), "sample", null, shape=(4,)), main, side


def given(n=3):
    generator = torch.Generator().manual_seed(2)
    text, pose = torch.randn(2, n, 4, generator=generator, dtype=DOUBLE)
    text = torch.cat([text, text[:, :2]], 1)
    return {"text": text, "pose": pose, "pose_on": torch.ones(n, dtype=torch.long)}


def base(main):
    """The network without its side."""
    return fl.Denoiser(
        lambda x, t, text: main(x, t, None, text), VP(), "sample", {"text": nulls.zeros()},
        shape=(4,),
    )  # fmt: skip


def draw(d, condition, guide, **options):
    return fl.sample(d, condition, guide=guide, steps=4, sampler="ddim", dtype=DOUBLE, **options)


def test_rows_without_the_picture_are_the_network_alone_to_the_bit():
    d, main, side = model()
    c, x = given(), torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    off = d(x, 0.5, {**c, "pose_on": [0, 0, 0]})
    assert torch.equal(off, base(main)(x, 0.5, {"text": c["text"]}))
    assert side.calls == 0
    mixed = d(x, 0.5, {**c, "pose_on": [1, 0, 1]})
    assert torch.equal(mixed[1], off[1])
    assert side.rows == 2
    assert_close(mixed[[0, 2]], d(x, 0.5, c)[[0, 2]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["normal", "guess", "nested"])
def test_scale_zero_is_the_network_alone_in_every_mode(mode):
    d, main, _ = model(scales=0.0)
    c = given()
    out = draw(d, c, recipes.control("text", "pose", 4.0, mode, strength=2.5))
    plain = draw(base(main), {"text": c["text"]}, "cfg(4)")
    assert_close(out.x, plain.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["normal", "guess"])
def test_w_1_is_the_controlled_model(mode):
    d, _, _ = model()
    assert torch.equal(
        draw(d, given(), recipes.control("text", "pose", 1.0, mode)).x, draw(d, given(), "none").x
    )


@pytest.mark.parametrize(("mode", "rows"), [("normal", 2), ("guess", 1), ("nested", 2)])
def test_the_side_runs_where_it_is_shown(mode, rows):
    d, _, side = model()
    draw(d, given(), recipes.control("text", "pose", 4.0, mode, strength=2.5))
    assert side.rows == rows * 3 * 4  # three samples, four steps


def test_modes_by_hand():
    d, main, side = model()
    c = given()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    t = torch.zeros(3)
    text, zero = c["text"], torch.zeros_like(c["text"])
    with torch.no_grad():
        full, dark = (main(x, t, side(x, t, c["pose"], v), v) for v in (text, zero))
        bare = main(x, t, None, zero)
    expected = {"normal": dark + 4 * (full - dark), "guess": bare + 4 * (full - bare)}
    expected["nested"] = bare + 2.5 * (dark - bare) + 4 * (full - dark)
    levels = VP().grid(1)
    for mode, value in expected.items():
        guide = recipes.control("text", "pose", 4.0, mode, strength=2.5)
        out = fl.sample(d, c, guide=guide, sampler="ddim", levels=levels, x=x, dtype=DOUBLE)
        assert_close(out.x, value, rtol=1e-10, atol=1e-10)


def test_every_residual_has_its_scale():
    faded, main, side = model(scales=guess_scales(1))
    c = given()
    x, t = torch.randn(3, 4, dtype=DOUBLE), torch.zeros(3)
    with torch.no_grad():
        a, b = side(x, t, c["pose"], c["text"])
        expected = main(x, t, [0.1 * a, b], c["text"])
        assert_close(faded(x, 0.5, c), expected)
    wrong, _, _ = model(scales=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="SideNetwork: scales must be one number, or 2"):
        wrong(x, 0.5, c)
