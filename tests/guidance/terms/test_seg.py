"""SEG: the blur by hand, blurred queries are blurred logits, the limits, joint attention, video."""

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Attended, AttentionLayer
from fairlead.guidance.blur import gaussian_blur
from fairlead.guidance.terms.seg import BlurredQueries
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4}
sides = st.integers(1, 9)
widths = st.floats(0.05, 20) | st.just(inf)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def call(grid, text=0, spatial=None, heads=2, d=3):
    tokens = torch.Size(grid).numel()
    q, k, v = normal(3, 2, heads, tokens + text, d).unbind(0)

    def plain(q, k, v, mask):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return Attended(
        AttentionLayer("mid", torch.nn.Identity(), "joint" if text else "self"),
        q, k, v, None, d**-0.5, slice(0, tokens), slice(tokens, tokens + text) if text else None,
        0, spatial or grid, plain,
    )  # fmt: skip


def blur_matrix(grid, width):
    """The blur as a matrix over the flattened grid."""
    n = torch.Size(grid).numel()
    return gaussian_blur(torch.eye(n, dtype=torch.float64).reshape(n, *grid), width).reshape(n, n).T


def test_blur_by_hand():
    # width 1: ceil(6) = 6, so 7 taps; a side of 3 leaves 3 of them, with reflected borders
    e = torch.exp(torch.tensor(-0.5, dtype=torch.float64))
    a, b = e / (1 + 2 * e), 1 / (1 + 2 * e)
    line = torch.tensor([[b, 2 * a, 0], [a, b, a], [0, 2 * a, b]], dtype=torch.float64)
    x = normal(2, 3, 3)
    assert_close(gaussian_blur(x, 1.0), line @ x @ line.T)
    assert_close(gaussian_blur(x, 1.0, kernel=1), x)


@pytest.mark.parametrize(("side", "taps"), [(8, 9), (7, 7), (2, 3), (1, 1)])
def test_kernel_is_bounded_by_the_grid(side, taps):
    x = torch.zeros(1, 41, 41, dtype=torch.float64)
    x[0, 20, 20] = 1
    wide = gaussian_blur(x, 500.0, kernel=taps)  # the same taps where borders play no part
    assert int((wide > 0).sum()) == taps**2
    small = normal(1, side, side)
    assert_close(gaussian_blur(small, 500.0), gaussian_blur(small, 500.0, kernel=taps))


@given(sides, sides, widths, st.floats(-5, 5))
def test_blur_keeps_constants_and_tiny_widths_keep_all(h, w, width, value):
    constant = torch.full((2, h, w), value, dtype=torch.float64)
    assert_close(gaussian_blur(constant, width), constant)
    x = normal(2, h, w)
    assert torch.equal(gaussian_blur(x, 1 / 6), x)


@given(sides, sides, widths)
def test_blurred_queries_are_blurred_logits(h, w, width):
    c = call((h, w))
    logits = blur_matrix((h, w), width) @ (c.q @ c.k.transpose(-1, -2)) * c.scale
    expected = logits.softmax(-1) @ c.v
    assert_close(BlurredQueries("mid", width)(c, [0, 1], None), expected)


def test_infinite_width_gives_all_tokens_one_vector_per_head():
    c = call((3, 5))
    out = BlurredQueries("mid", inf)(c, [0, 1], None)
    assert_close(out, out[..., :1, :].expand(out.shape))
    mean = c.attend(q=c.q.mean(-2, keepdim=True))
    assert_close(out[..., :1, :], mean)
    large = BlurredQueries("mid", 1e4)(c, [0, 1], None)  # a box of 5 x 5, no mean
    assert not torch.allclose(large, out)


@pytest.mark.parametrize("width", [1.0, inf])
def test_joint_attention_blurs_the_queries_of_the_image_alone(width):
    c = call((4, 4), text=3)
    out = BlurredQueries("mid", width)(c, [0, 1], None)
    assert_close(out[..., 16:, :], c.attend()[..., 16:, :])
    image = blur_matrix((4, 4), width) @ c.q[..., :16, :]
    assert_close(out[..., :16, :], c.attend(q=image))


@pytest.mark.parametrize("width", [1.0, inf])
def test_a_video_is_blurred_frame_by_frame(width):
    c = call((2, 3, 4))
    frames = blur_matrix((3, 4), width) @ c.q.unflatten(-2, (2, 12))
    expected = c.attend(q=frames.flatten(-3, -2))
    assert_close(BlurredQueries("mid", width)(c, [0, 1], None), expected)


@pytest.mark.parametrize("width", [0.1, 1 / 6])
def test_tiny_width_is_no_guidance(width):
    guide = fl.SEG(3.0, width=width, layers="mid,up,down")
    out = fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide=guide, **OPTIONS)
    plain = fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, **OPTIONS)
    assert_close(out.x, plain.x, rtol=1e-9, atol=1e-9)


def test_acts_on_the_layers_that_it_names():
    found = [
        fl.sample(tiny_denoiser(), LABEL, guide=f"cfg(3) + seg(3, layers='{layers}')", steps=2)
        for layers in ("mid", "up.0.0", "mid,up.0.0")
    ]
    assert all(out.nfe.tolist() == [9, 9] for out in found)  # three branches, two stages and one
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert not torch.allclose(found[a].x, found[b].x, atol=1e-4)


def test_by_hand_and_bad_values():
    c, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert torch.equal(fl.combine("seg(2)", {"cond": c, "seg": p}), torch.tensor([[3.0, -4.0]]))
    with pytest.raises(ValueError, match=r"seg: width must be in \(0, inf\], got 0"):
        fl.SEG(3.0, width=0.0)
    with pytest.raises(ValueError, match=r"seg: no self or joint .*'middle'.*mid\.0"):
        fl.sample(tiny_denoiser(), LABEL, guide="seg(3, layers='middle')", steps=2)


def test_equal_queries_have_nothing_to_lose():
    c = call((3, 5))
    c.q = c.q[..., :1, :].expand(c.q.shape)
    for width in (1.0, inf):
        assert_close(BlurredQueries("mid", width)(c, [0, 1], None), c.attend())


def test_with_cfg_the_null_prediction_can_be_perturbed():
    """The paper's rule: `D_u + w (D_c - D_u) + s (D_u - ~D_u)`."""
    c, u, p = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]]).unbind()
    values = {"cond": c, "null": u, "seg": p}
    out = fl.combine("cfg(3) + seg(2, state='null')", values)
    assert_close(out, u + 3 * (c - u) + 2 * (u - p))
    d = tiny_denoiser(dtype=torch.float64)
    one = {**OPTIONS, "steps": 1, "sampler": "ddim"}
    x = fl.sample(d, LABEL, guide="cfg(3) + seg(1.5, state='null')", **one)
    assert x.nfe.tolist() == [3, 3]
    null = {"label": [10, 10]}
    alone, plain = (fl.sample(d, null, guide=g, **one).x for g in ("seg(1.5)", "none"))
    assert_close(x.x, fl.sample(d, LABEL, guide="cfg(3)", **one).x + alone - plain)
    with pytest.raises(ValueError, match="seg: state must be one of cond, null"):
        fl.SEG(3.0, state="negative")
