"""Overlapping windows: plain runs, the least-squares form, averaged steps, any axis, refusals."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.testing import tiny_denoiser

DOUBLE = torch.float64


def drawn(*shape, key=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=DOUBLE)


def local(function, shape, **options):
    """A denoiser whose network is a function of the sample alone."""

    def network(x, t):
        return function(x)

    return fl.Denoiser(network, fl.schedules.VP(), "sample", shape=shape, **options)


def mixing(x):
    """Mixes each window with its own mean and position, so that windows disagree."""
    n = x.shape[-1]
    return torch.tanh(x) + x.mean((-2, -1), keepdim=True) * torch.arange(n).to(x) / n


@pytest.mark.parametrize("guide", ["none", "cfg(3)", "cfg(3) | apg(r=1, beta=-0.5)"])
@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "ddpm"])
def test_one_window_over_the_canvas_is_the_model(guide, sampler):
    d = tiny_denoiser(dtype=DOUBLE)
    options = {"guide": guide, "sampler": sampler, "steps": 4, "dtype": DOUBLE}
    wide = fl.sample(fl.ViewsDenoiser(d, (8, 8), 4), {"label": [3, 5]}, **options)
    plain = fl.sample(d, {"label": [3, 5]}, **options)
    assert torch.equal(wide.x, plain.x)
    assert torch.equal(wide.nfe, plain.nfe)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=3),
    stride=st.integers(1, 5),
    views=st.integers(1, 7),
)
def test_windows_cover_every_pixel_and_a_pointwise_model_is_itself(sizes, stride, views):
    window = tuple(w for w, _ in sizes)
    canvas = tuple(w + more for w, more in sizes)
    strides = [min(stride, w) for w in window]
    d = local(torch.tanh, (2, *window))
    wide = fl.ViewsDenoiser(d, canvas, strides, views=views)
    x = drawn(3, 2, *canvas)
    assert_close(wide(x, 0.5), torch.tanh(x), rtol=1e-12, atol=1e-12)
    steps = [-(-(n - w) // s) + 1 for n, w, s in zip(canvas, window, strides, strict=True)]
    expected = 1
    for s in steps:
        expected *= s
    assert len(wide.windows(canvas)) == expected


@pytest.mark.parametrize("views", [1, 2, 9])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_solves_the_least_squares_problem(weighted, views):
    d, x = local(mixing, (1, 3, 4)), drawn(2, 1, 5, 9)
    weight = torch.rand(3, 4, dtype=DOUBLE) + 0.1 if weighted else None
    wide = fl.ViewsDenoiser(d, (5, 9), (2, 3), weight=weight, views=views)
    m = torch.ones(3, 4, dtype=DOUBLE) if weight is None else weight
    rows, targets = [], []
    for top, left in product((0, 2), (0, 3, 5)):  # by hand
        cut = torch.zeros(3, 4, 5, 9, dtype=DOUBLE)
        for i, j in product(range(3), range(4)):
            cut[i, j, top + i, left + j] = m[i, j] ** 0.5
        rows.append(cut.reshape(12, 45))
        seen = mixing(x[..., top : top + 3, left : left + 4])
        targets.append((m**0.5 * seen).reshape(2, 12).T)
    solved = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution.T.reshape(x.shape)
    assert_close(wide(x, 0.5), solved, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "ddpm", "dpmpp_2m"])
def test_averaged_predictions_are_averaged_steps(sampler):
    """Each window has its own guided step, and memory; their results are averaged."""
    d = tiny_denoiser(dtype=DOUBLE)
    wide = fl.ViewsDenoiser(d, (8, 14), 3)
    levels = d.schedule.grid(5)
    at = wide.windows((8, 14))
    run = fl.Run(0, [0], 5, levels=levels)
    x = drawn(1, 2, 8, 14) * levels[0].sigma
    rule = fl.samplers.get(sampler)
    ours = fl.sample(
        wide, {"label": 3}, guide="cfg(3)", sampler=sampler, levels=levels, x=x, dtype=DOUBLE
    ).x
    condition = {"cond": fl.Condition({"label": [3]})}
    apart = [
        GuidedModel(fl.guide("cfg(3)"), Evaluator(d, condition), fl.Run(0, [0], 5, levels=levels))
        for _ in at
    ]
    whole = GuidedModel(fl.guide("none"), Evaluator(wide, condition), run)
    for s, t in pairwise(levels):
        whole.begin(s)
        noise = whole.noise(x)
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for model, view in zip(apart, at, strict=True):
            model.noise = lambda y, own=noise[..., *view]: own
            model.begin(s)
            with torch.no_grad():
                total[..., *view] += rule.step(model, x[..., *view], s, t)
            count[..., *view] += 1
        x = total / count
    assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("window", "canvas"), [((6,), (17,)), ((3, 4, 5), (7, 4, 6)), ((1, 4), (3, 9))]
)
def test_lines_and_videos(window, canvas):
    d = local(lambda x: x - x.mean(tuple(range(2, x.ndim)), keepdim=True), (2, *window))
    wide = fl.ViewsDenoiser(d, canvas, [max(1, w // 2) for w in window])
    x = drawn(2, 2, *canvas)
    out = wide(x, 0.5)
    assert out.shape == x.shape
    # a constant is removed in every window, and so in every average
    assert_close(wide(x + 3, 0.5), out, rtol=1e-12, atol=1e-12)
    assert_close(wide(torch.ones_like(x), 0.5), torch.zeros_like(x))


def test_batches_and_numbers_of_windows_change_nothing():
    d = tiny_denoiser(dtype=DOUBLE)
    options = {"guide": "cfg(3)", "steps": 3, "dtype": DOUBLE}
    one, many = (fl.ViewsDenoiser(d, (11, 14), 3, views=v) for v in (1, 5))
    both = fl.sample(many, {"label": [3, 5]}, **options)
    alone = fl.sample(one, {"label": [5]}, first=1, **options)
    assert_close(both.x[1:], alone.x, rtol=1e-9, atol=1e-9)
    before = d.network.calls
    many(drawn(1, 2, 11, 14), 1.0, {"label": [3]})
    assert d.network.calls - before == 2  # six windows, five at most in a call


def test_times_that_differ_between_samples():
    d = tiny_denoiser(dtype=DOUBLE)
    wide = fl.ViewsDenoiser(d, (8, 13), 5, views=2)
    x, t = drawn(2, 2, 8, 13), torch.tensor([0.5, 2.0])
    both = wide(x, t, {"label": [3, 5]})
    for i, label in enumerate((3, 5)):
        assert_close(both[i : i + 1], wide(x[i : i + 1], float(t[i]), {"label": [label]}))


def test_windows_see_their_part_of_a_picture():
    def network(x, t, picture, label):
        return picture + label.reshape(-1, 1, 1, 1)

    d = fl.Denoiser(network, fl.schedules.VP(), "sample", shape=(1, 4, 4))
    picture = drawn(2, 1, 6, 9)
    given = {"picture": picture, "label": [1, 2]}
    wide = fl.ViewsDenoiser(d, (6, 9), 2, crop=["picture"], views=3)
    x = drawn(2, 1, 6, 9)
    assert_close(wide(x, 0.5, given), picture + torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"views: the condition 'picture' is a picture of the"):
        fl.sample(wide, {"picture": torch.zeros(1, 1, 6, 8), "label": [1]})


def test_regions_of_a_canvas():
    """Each half of a wide canvas follows its own label, where no window sees both."""
    d = tiny_denoiser(dtype=DOUBLE)
    wide = fl.ViewsDenoiser(d, (8, 16), 8)
    right = torch.zeros(1, 8, 16)
    right[..., 8:] = 1
    options = {"steps": 3, "sampler": "ddim", "dtype": DOUBLE}
    x = drawn(1, 2, 8, 16)
    out = fl.sample(
        wide,
        {"label": 3},
        guide="regions('label', 4, ['right'])",
        states={"right": {"label": 7}},
        masks={"right": right},
        x=x,
        **options,
    )
    for half, label in ((slice(0, 8), 3), (slice(8, 16), 7)):
        own = fl.sample(d, {"label": label}, guide="cfg(4)", x=x[..., half], **options)
        assert_close(out.x[..., half], own.x, rtol=1e-8, atol=1e-8)


def test_companions_are_seen_through_the_same_windows():
    d = tiny_denoiser(dtype=DOUBLE)
    assert "weak" in d.models
    wide = fl.ViewsDenoiser(d, (8, 12), 4)
    guide = "autoguidance(2)"
    out = fl.sample(wide, {"label": 3}, guide=guide, steps=2, dtype=DOUBLE)
    assert out.x.shape == (1, 2, 8, 12)


@pytest.mark.parametrize(
    "guide", ["pag(2)", "slg(2, 'mid')", "tsg(2)", "sag(1)", "cfg(2) | reuse()"]
)
def test_guides_that_reach_into_the_network_are_refused(guide):
    d = tiny_denoiser()
    wide = fl.ViewsDenoiser(d, (8, 12), 4)
    with pytest.raises(ValueError, match="network"):
        fl.sample(wide, {"label": 3}, guide=guide, steps=2)
    assert d.network.calls == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8,), 4), r"views: size must be 2 whole numbers of at least 1.*got \(8,\)"),
        (((8, 12), 0), r"views: stride must be 2 whole numbers of at least 1"),
        (((8, 12), (4,)), r"views: stride must be 2 whole numbers"),
        (((8, 12), 9), r"views: stride must be at most the window, \(8, 8\)"),
        (((8, 6), 4), r"views: a canvas must be at least as large as a window, \(8, 8\)"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fl.ViewsDenoiser(tiny_denoiser(), *arguments)


def test_bad_options_are_named():
    d = tiny_denoiser()
    with pytest.raises(ValueError, match="views: views must be at least 1, got 0"):
        fl.ViewsDenoiser(d, (8, 8), 4, views=0)
    for weight in (torch.zeros(8, 8), torch.ones(4, 8), torch.full((8, 1), float("nan"))):
        with pytest.raises(ValueError, match="views: weight must be positive numbers shaped like"):
            fl.ViewsDenoiser(d, (8, 8), 4, weight=weight)
    with pytest.raises(ValueError, match="views: samples must have 2 dimensions behind"):
        fl.ViewsDenoiser(d, (8, 12), 4)(torch.zeros(1, 2, 12), 1.0, {"label": [1]})
    d.shape = None
    with pytest.raises(ValueError, match="views: window must be given"):
        fl.ViewsDenoiser(d, (8, 8), 4)
