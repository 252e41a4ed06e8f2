"""Bootstrapped regions: what a branch sees, the region's own guidance, models without a view."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Context, Run
from fairlead.guidance.terms.foreground import OverColour
from fairlead.schedules import VP
from fairlead.testing import tiny_denoiser

DOUBLE = torch.float64
LEFT = (torch.arange(8) < 4).double().reshape(1, 1, 8)


def drawn(*shape, key=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=DOUBLE)


def recording(function, shape):
    """A model that keeps what it is shown."""
    seen = []

    def network(x, t, label):
        seen.append((x, label))
        return function(x, label)

    d = fl.Denoiser(network, VP(), "sample", null={"label": -1}, shape=shape)
    return d, seen


def pointwise(x, label):
    return torch.tanh(x) * (2 + label.reshape(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("shape", [(2, 8), (2, 5, 8), (3, 4, 7, 8)])
def test_the_region_sees_itself_and_noised_colours(shape):
    mask = (torch.rand(shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5).double()
    run = Run(0, range(4), 10, masks={"m": mask[None, None]})
    run.advance()
    x, level = drawn(4, *shape), VP().level(0.6)
    moved = OverColour("m", ())(x, None, Context(x, level, run))
    inside = mask.bool().expand_as(x)
    assert torch.equal(moved[inside], x[inside])
    noise = run.fixed(x, "noise around m")
    colour = (moved - level.sigma * noise) / level.alpha
    outside = [colour[i, c][~mask.bool()] for i in range(4) for c in range(shape[0])]
    for values in outside:  # one number a sample and channel
        assert_close(values, values[:1].expand_as(values), rtol=1e-9, atol=1e-9)
    firsts = torch.stack([v[0] for v in outside])
    assert firsts.abs().max() <= 1
    assert len(firsts.unique()) == len(firsts)


def test_colours_change_and_the_noise_does_not():
    run = Run(0, range(2), 10, masks={"m": torch.zeros(1, 1, 4, dtype=DOUBLE)})
    x, level = drawn(2, 1, 4), VP().level(0.6)
    seen = []
    for _ in range(2):
        run.advance()
        seen.append(OverColour("m", ())(x, None, Context(x, level, run)))
    gap = (seen[1] - seen[0]) / level.alpha
    assert gap.abs().min() > 1e-3
    assert_close(gap, gap[..., :1].expand_as(gap), rtol=1e-9, atol=1e-9)  # two colours


def test_given_colours_are_drawn():
    run = Run(0, range(64), 10, masks={"m": torch.zeros(1, 1, 4, dtype=DOUBLE)})
    run.advance()
    x, palette = torch.zeros(64, 2, 4, dtype=DOUBLE), ((0.5, -1.0), (0.25, 2.0))
    level = fl.schedules.Level(0.0, 1.0, 0.0)
    out = OverColour("m", palette)(x, None, Context(x, level, run))
    found = {tuple(row) for row in out[..., 0].tolist()}
    assert found == set(palette)


@given(w=st.floats(-2, 12), until=st.sampled_from([0.2, 0.4, 1.0]), seed=st.integers(0, 99))
def test_a_model_that_sees_single_pixels_does_not_notice(w, until, seed):
    d, _ = recording(pointwise, (2, 3, 8))
    options = {
        "states": {"left": {"label": 4}},
        "masks": {"left": LEFT},
        "steps": 5,
        "sampler": "ddim",
        "dtype": DOUBLE,
        "seed": seed,
    }
    guide = fl.recipes.regions("label", w, ["left"], bootstrap=until)
    with_colours = fl.sample(d, {"label": 2}, guide=guide, **options).x
    plain = fl.sample(d, {"label": 2}, guide=fl.recipes.regions("label", w, ["left"]), **options).x
    assert_close(with_colours, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("w", [1.0, 4.0])
def test_the_region_is_guided_over_colours_and_the_rest_as_ever(w):
    d = tiny_denoiser(dtype=DOUBLE)
    seen = []

    def keep(step):
        seen.append(step)

    x = drawn(2, 2, 8, 8) * 80
    out = fl.sample(
        d,
        {"label": [3, 5]},
        guide=fl.recipes.regions("label", w, ["left"], bootstrap=1.0),
        states={"left": {"label": [7, 8]}},
        masks={"left": LEFT},
        steps=2,
        sampler="ddim",
        x=x,
        callback=keep,
        dtype=DOUBLE,
        levels=d.schedule.grid(2),
    )
    assert out.x.shape == x.shape
    run = Run(0, range(2), 2, masks={"left": LEFT[None]})
    run.advance()
    level = d.schedule.grid(2)[0]
    over = OverColour("left", ())(x, None, Context(x, level, run))
    region, null = (d(over, level, {"label": v}) for v in ([7, 8], [10, 10]))
    around, plain = (d(x, level, {"label": v}) for v in ([3, 5], [10, 10]))
    wanted = LEFT * (null + w * (region - null)) + (1 - LEFT) * (plain + w * (around - plain))
    assert_close(seen[0].denoised, wanted, rtol=1e-9, atol=1e-9)


def test_cost_and_the_change_to_plain_regions():
    d = tiny_denoiser()
    costs = []
    fl.sample(
        d,
        {"label": [3]},
        guide=fl.recipes.regions("label", 3.0, ["a", "b"], bootstrap=0.4),
        states={"a": {"label": [7]}, "b": {"label": [8]}},
        masks={"a": LEFT.float(), "b": (torch.arange(8) > 5).reshape(1, 1, 8)},
        steps=5,
        sampler="ddim",
        callback=lambda step: costs.append(int(torch.as_tensor(step.report.nfe).max())),
    )
    # cond, null; each region its own and its null over colours: then 0.4 of the steps are over
    assert costs == [6, 12, 16, 20, 24]


def test_zero_is_the_recipe_without_it():
    plain = fl.recipes.regions("label", 3.0, ["a", "b"])
    assert fl.recipes.regions("label", 3.0, ["a", "b"], bootstrap=0.0) == plain
    one = fl.guide("cfg(3) + (foreground('label', 'a', 3, until=0) | region('a'))")
    other = fl.guide("cfg(3) + (multi(['label'], [[3, 'label=a', 'all']]) | region('a'))")
    d, made = tiny_denoiser(dtype=DOUBLE), []
    for guide in (one, other):
        out = fl.sample(
            d,
            {"label": [3]},
            guide=guide,
            states={"a": {"label": [7]}},
            masks={"a": LEFT},
            steps=3,
            dtype=DOUBLE,
        )
        made.append(out.x)
    assert torch.equal(*made)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"foreground: until must be in \[0, 1\], got 2"):
        fl.Foreground("label", "a", 3.0, until=2.0)
    with pytest.raises(ValueError, match="foreground: colours must have one length"):
        fl.Foreground("label", "a", 3.0, colours=[[1.0], [1.0, 2.0]])
    d = tiny_denoiser()
    given = {"states": {"a": {"label": [7]}}, "masks": {"a": LEFT}, "steps": 2}
    with pytest.raises(ValueError, match=r"foreground: each of colours must be 2 numbers"):
        fl.sample(d, {"label": [3]}, guide=fl.Foreground("label", "a", 3, colours=[[1]]), **given)
    with pytest.raises(ValueError, match="foreground: the mask 'b' is missing"):
        fl.sample(d, {"label": [3]}, guide=fl.Foreground("label", "a", 3, mask="b"), **given)
