"""Maps of the stage before: by hand over two stages, means, what is neutral, errors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.policies.reuse_maps import _mean, _resized
from fairlead.guidance.resample import resize
from fairlead.stages import Stage, frecas, sample_stages
from fairlead.testing import tiny_denoiser

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, sums in another order
LABEL = {"label": [3, 5]}
GRID = tuple(fl.schedules.EDM().grid(5))
OPTIONS = {"n": 2, "dtype": torch.float64, "seed": 4}


def tiny():
    return tiny_denoiser(dtype=torch.float64, text=True)


def staged(guide, d=None, sizes=((8, 8), (12, 12)), **options):
    first, second = (Stage(guide, g, s) for g, s in zip((GRID[:4], GRID[2:]), sizes, strict=True))
    return sample_stages(d or tiny(), LABEL, stages=(first, second), **{**OPTIONS, **options})


def draws(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("w", [0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_by_hand(w, sampler):
    hand, kept, seen = tiny(), [None], [None]
    calls = {"ddim": (3, 3), "heun": (6, 5)}[sampler]
    last = calls[0] - (2 if sampler == "heun" else 1)  # the first evaluation of the last step
    number = [-1]

    def forward(q, k, v):
        """Rows: both samples, then both under null; tokens: 4x4, then 6x6."""
        number[0] += 1
        out = F.scaled_dot_product_attention(q, k, v)
        if number[0] == last:
            maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)
            kept[0] = maps.reshape(4, 4, 4, -1)
        if number[0] < calls[0]:
            return out
        m = resize(4, 6)
        maps = torch.einsum("ai,cj,bijl->bacl", m, m, kept[0]).flatten(1, 2)[:, None]
        seen[0] = maps
        return (1 - w) * out + w * maps @ v

    hand.network.cross.core.forward = forward
    by_hand = staged("cfg(3)", hand, sampler=sampler)
    assert number[0] + 1 == sum(calls)
    assert_close(seen[0].sum(-1), torch.ones_like(seen[0][..., 0]))
    out = staged(f"cfg(3) | reuse_maps({w})", sampler=sampler)
    assert_close(out.x, by_hand.x, **CLOSE)
    assert out.nfe.tolist() == by_hand.nfe.tolist()
    assert (out.x - staged("cfg(3)", sampler=sampler).x).abs().max() > 1e-4
    for options in ({"max_batch": 1}, {"max_batch": 3}):
        again = staged(f"cfg(3) | reuse_maps({w})", sampler=sampler, **options)
        assert_close(again.x, out.x, **CLOSE)


def test_each_stage_takes_the_maps_of_the_one_before():
    """Over three stages of two evaluations a step the last sees those of the second."""
    guide, steps = "cfg(0) | reuse_maps(1.0)", [GRID[:3], GRID[1:4], GRID[2:5]]
    d, used, taken = tiny(), [], []
    attend = F.scaled_dot_product_attention

    def forward(q, k, v):
        out = attend(q, k, v)
        taken.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1))
        return out

    d.network.cross.core.forward = forward
    d.network.cross.core.register_forward_hook(lambda m, a, out: used.append((a[2], out)))
    stages = [Stage(guide, levels, (8, 8)) for levels in steps]
    sample_stages(d, LABEL, stages=stages, sampler="heun", **OPTIONS)
    assert len(used) == 12
    for i, (v, out) in enumerate(used):
        if i < 4:
            continue
        maps = taken[2 if i < 8 else 6][:, None]
        assert_close(out, maps @ v, **CLOSE)


def test_what_is_neutral():
    assert torch.equal(staged("cfg(3) | reuse_maps(0)").x, staged("cfg(3)").x)
    one = [fl.sample(tiny(), LABEL, guide=g, steps=3, dtype=torch.float64).x
           for g in ("cfg(3) | reuse_maps(0.7)", "cfg(3)")]  # fmt: skip
    assert torch.equal(*one)


def test_the_first_stage_must_take_the_notes():
    stages = (
        Stage("cfg(3)", GRID[:4], (8, 8)),
        Stage("cfg(3) | reuse_maps(0.7)", GRID[2:], (12, 12)),
    )
    out = sample_stages(tiny(), LABEL, stages=stages, **OPTIONS)
    assert torch.equal(out.x, staged("cfg(3)").x)


def test_a_branch_that_was_left_out_keeps_its_own_maps():
    """Null is not evaluated in the last step of the first stage, so only the base is mixed."""
    late = "cfg(3) | interval(0, 0.3) | reuse_maps(1.0)"
    stages = Stage(late, GRID[:4], (8, 8)), Stage("cfg(0) | reuse_maps(1.0)", GRID[2:], (12, 12))
    plain = stages[0], Stage("cfg(0)", GRID[2:], (12, 12))
    outs = [sample_stages(tiny(), LABEL, stages=s, **OPTIONS) for s in (stages, plain)]
    assert torch.equal(outs[0].x, outs[1].x)


def test_perturbed_branches_read_and_do_not_write():
    guide = "cfg(3) + pag(2, layers='mid') | reuse_maps(0.6)"
    out, parts = staged(guide), staged(guide, max_batch=2)
    assert_close(out.x, parts.x, **CLOSE)
    silent = staged("cfg(3) + pag(1e-12, layers='mid') | reuse_maps(0.6)")
    assert_close(silent.x, staged("cfg(3) | reuse_maps(0.6)").x, rtol=1e-7, atol=1e-7)


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 9))
def test_means_over_layers_and_then_over_grids(h, w, seed):
    coarse, fine = draws(3, 2, h, w, seed=seed), draws(3, 2, 2 * h, 2 * w, seed=seed + 1)
    other = draws(3, 2, 2 * h, 2 * w, seed=seed + 2)
    rows = [0, 1, 2]
    out = _mean([(rows, coarse), (rows, fine), (rows, other)], 3)
    assert_close(out, (_resized(coarse, (2 * h, 2 * w)) + (fine + other) / 2) / 2)
    pieces = [([2], fine[2:]), ([0, 1], fine[:2]), ([1, 2], other[1:]), ([0], other[:1])]
    assert_close(_mean(pieces, 3), (fine + other) / 2)
    ones = torch.ones(1, 1, h, w, dtype=torch.float64)
    assert_close(_resized(ones, (7, 9)), torch.ones(1, 1, 7, 9, dtype=torch.float64))


def test_frecas_holds_it_in_every_stage():
    stages = frecas(fl.schedules.EDM(), [(8, 8), (16, 16)], (3, 2), (0.5, 0), maps=0.6)
    assert str(stages[0].guide) == "cfg(7.5) | reuse_maps(0.6)"
    assert str(stages[1].guide) == "cfg(7.5) | bands(5.230769230769231) | reuse_maps(0.6)"
    out = sample_stages(tiny(), LABEL, stages=stages, **OPTIONS)
    plain = frecas(fl.schedules.EDM(), [(8, 8), (16, 16)], (3, 2), (0.5, 0))
    assert (out.x - sample_stages(tiny(), LABEL, stages=plain, **OPTIONS).x).abs().max() > 1e-4


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"reuse_maps: w must be in \[0, 1\], got 1.5"):
        frecas(fl.schedules.EDM(), [(8, 8), (16, 16)], (3, 2), (0.5, 0), maps=1.5)
    with pytest.raises(ValueError, match="reuse_maps: no cross attention layer matches"):
        fl.sample(tiny_denoiser(), {"label": 3}, guide="cfg(2) | reuse_maps(0.5)", steps=2)
