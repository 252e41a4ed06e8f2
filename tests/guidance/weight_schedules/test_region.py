"""Regions and parts: by hand, for images and videos of any size, by batch, and the errors."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Run
from fairlead.testing import tiny_denoiser

SHAPES = [(2, 3, 7, 5), (2, 3, 4, 6, 9), (3, 1, 11), (2, 5)]


def pair(shape):
    generator = torch.Generator().manual_seed(0)
    return {
        k: torch.randn(shape, generator=generator, dtype=torch.float64) for k in ("cond", "null")
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_is_cfg_and_outside_conditional(shape):
    v = pair(shape)
    mask = torch.rand((1, *shape[2:]) if len(shape) > 2 else shape[1:]) < 0.4
    out = fl.combine("cfg(3) | region('m')", v, masks={"m": mask})
    guided = fl.combine("cfg(3)", v)
    assert_close(out, torch.where(mask, guided, v["cond"]))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_a_sample(shape):
    v = pair(shape)
    mask = torch.rand(shape[0], *[1] * (len(shape) - 2), shape[-1], dtype=torch.float64)
    out = fl.combine("cfg(3) | region('m')", v, masks={"m": mask})
    assert_close(out, v["cond"] + 2 * mask * (v["cond"] - v["null"]))


def test_frames_of_a_video():
    v = pair((2, 3, 4, 6, 9))
    frames = torch.tensor([0.0, 1.0, 0.5, 0.0]).reshape(1, 4, 1, 1)
    out = fl.combine("cfg(3) | region('f')", v, masks={"f": frames})
    assert torch.equal(out[:, :, 0], v["cond"][:, :, 0])
    assert_close(out[:, :, 1], fl.combine("cfg(3)", v)[:, :, 1])


def test_overlapping_regions_share():
    v = pair((1, 1, 4))
    masks = {"a": [[1.0, 1.0, 0.0, 0.5]], "b": [[0.0, 1.0, 0.0, 0.0]]}
    out = fl.combine("cfg(3) | region('a', of=['a', 'b'])", v, masks=masks)
    share = torch.tensor([1.0, 0.5, 0.0, 0.5])
    assert_close(out, v["cond"] + 2 * share * (v["cond"] - v["null"]))


def test_a_mask_of_as_many_numbers_as_samples_is_no_weight_a_sample():
    v = pair((4, 1, 2, 2))
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None]
    out = fl.combine("cfg(3) | region('m')", v, masks={"m": mask})
    assert_close(out, v["cond"] + 2 * mask * (v["cond"] - v["null"]))
    d = tiny_denoiser()
    d.shape = None
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"x": x, "sampler": "ddim", "steps": 2, "n": 4}
    row = torch.zeros(4, 1, 1, 1)
    row[1] = 1
    out = fl.sample(
        d, {"label": [1] * 4}, guide="cfg(3) | region('m')", masks={"m": row}, **options
    )
    plain = fl.sample(d, {"label": [1] * 4}, **options)
    assert_close(out.x[[0, 2, 3]], plain.x[[0, 2, 3]], atol=1e-5, rtol=1e-5)
    assert out.nfe.tolist() == [2, 4, 2, 2]


def test_a_mask_of_ones_and_of_zeros():
    v = pair((2, 3, 4))
    ones = fl.combine("cfg(3) | region('m')", v, masks={"m": torch.ones(3, 4)})
    assert_close(ones, fl.combine("cfg(3)", v))
    zeros = fl.combine("cfg(3) | region('m')", v, masks={"m": torch.zeros(3, 4)})
    assert torch.equal(zeros, v["cond"])


def test_rules_stay_inside():
    v = pair((2, 3, 4))
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(3, 4)
    out = fl.combine("cfg(3) | region('m') | apg(eta=0)", v, masks={"m": mask})
    assert torch.equal(out[..., 1:3], v["cond"][..., 1:3])
    assert not torch.equal(out[..., 0], v["cond"][..., 0])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(7), r"masks: 'm' must be shaped like a sample, \(2, 8, 8\), or like the batch"),
        (torch.ones(3, 1, 8, 7), r"got \(3, 1, 8, 7\)"),
        (torch.ones(2, 1, 8, 8), r"got \(2, 1, 8, 8\)"),
        (torch.full((1, 8, 8), 2.0), r"masks: 'm' must be in \[0, 1\]"),
        (torch.full((1, 8, 8), float("nan")), r"masks: 'm' must be in \[0, 1\]"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_before_the_first_step(mask, message):
    d = tiny_denoiser()
    with pytest.raises(ValueError, match=message):
        fl.sample(d, {"label": [1, 2, 3]}, guide="cfg(3) | region('m')", masks={"m": mask})
    assert d.network.calls == 0


def test_a_missing_mask_is_named():
    d = tiny_denoiser()
    with pytest.raises(
        ValueError, match=r"region: the mask 'lfet' is missing.*did you mean 'left'"
    ):
        fl.sample(
            d, {"label": [1]}, guide="cfg(3) | region('lfet')", masks={"left": torch.ones(1, 8, 8)}
        )
    assert d.network.calls == 0
    with pytest.raises(ValueError, match="the mask 'm' is missing"):
        fl.combine("cfg(3) | region('m')", pair((2, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": ""}, "mask must be the name of a mask"),
        ({"mask": "a", "of": ("b",)}, "of must be names, with 'a' one of them"),
    ],
)
def test_bad_regions(arguments, message):
    with pytest.raises(ValueError, match=f"region: {message}"):
        fl.Region(**arguments)


def test_last_nine_of_sixty_four():
    v = pair((2, 64))
    out = fl.combine("cfg(1.1) | part(-9)", v)
    assert torch.equal(out[:, :55], v["cond"][:, :55])
    assert_close(out[:, 55:], fl.combine("cfg(1.1)", v)[:, 55:])
    assert_close(fl.combine("cfg(3) | part(0)", v), fl.combine("cfg(3)", v))
    assert torch.equal(fl.combine("cfg(1) | part(-9)", v), v["cond"])


def test_generated_frames_alone():
    v = pair((2, 3, 9, 4, 5))
    out = fl.combine("cfg(2) | part(1, -1, dim=2)", v)
    assert torch.equal(out[:, :, [0, -1]], v["cond"][:, :, [0, -1]])
    assert_close(out[:, :, 1:-1], fl.combine("cfg(2)", v)[:, :, 1:-1])


def test_parts_that_do_not_fit_are_refused_before_the_first_step():
    d = tiny_denoiser()
    for guide, message in (
        ("cfg(3) | part(5, 5)", "nothing lies between start = 5 and stop = 5 in a dimension of 2"),
        ("cfg(3) | part(0, dim=4)", r"part: dim must be in 1..3 or -3..-1"),
    ):
        with pytest.raises(ValueError, match=message):
            fl.sample(d, {"label": [1]}, guide=guide)
    assert d.network.calls == 0
    with pytest.raises(ValueError, match="part: dim must be 1 or more"):
        fl.Part(0, dim=0)
    with pytest.raises(ValueError, match=r"part: start must be a whole number, got 0.5"):
        fl.Part(0.5)


def test_masks_may_be_given_with_the_run():
    v, run = pair((2, 4)), Run()
    run.masks = {"m": torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)}
    out = fl.combine("cfg(3) | region('m')", v, run=run)
    assert torch.equal(out[:, 1:], v["cond"][:, 1:])
