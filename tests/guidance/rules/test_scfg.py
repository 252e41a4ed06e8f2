"""S-CFG: regions and scales by hand, the identities, videos, what is captured, and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.blur import gaussian_blur
from fairlead.guidance.branch import COND, NULL, Predictions
from fairlead.guidance.context import Context, Plan, Run
from fairlead.guidance.rules.scfg import evening
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
VALUES = {"cond": torch.ones(1, 1, 2, 2), "null": torch.zeros(1, 1, 2, 2)}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def matrices(side, tokens, seed, frames=None, batch=1):
    """Random attention matrices: cross `(M, *grid, tokens)` and self `(M, *grid, cells)`."""
    grid = (side, side) if frames is None else (frames, side, side)
    cells = torch.Size(grid).numel()
    cross, own = (normal(batch, *grid, k, seed=seed + i).softmax(-1) for i, k in
                  enumerate((tokens, cells)))  # fmt: skip
    return cross, own


class Layers:
    """A stand-in for the denoiser: layers that begin with `c` attend to the text."""

    def __init__(self, *names):
        kinds = {n: "cross" if n.startswith("c") else "self" for n in names}
        self.attention_layers = {n: type("Layer", (), {"kind": k}) for n, k in kinds.items()}


def guided(guide, c, u, cond_maps, null_maps):
    """One step on given predictions and attention maps."""
    guide = fl.guide(guide)
    rule = list(guide.nodes())[-1]
    ctx = Context(None, None, Run(record=False), Layers(*cond_maps), batch=len(c), ndim=c.ndim,
                  like=c)  # fmt: skip
    ctx.run.advance()
    ctx.plan = Plan(COND)
    guide.plan(ctx, (), 1.0, ())
    maps = {(COND, rule.maps): {k: [v] for k, v in cond_maps.items()},
            (NULL, rule.maps): {k: [v] for k, v in null_maps.items()}}  # fmt: skip
    update, _ = guide.update(Predictions(COND, {COND: c, NULL: u}, maps), ctx, ())
    return c + update


def by_hand(c, u, w, cond, null, low, high, cap, side):
    """The rule for one sample with one layer of the full size and no self-attention."""

    def smooth(m):  # (L, h, w)
        return gaussian_blur(m, 0.5, 3)

    tokens = smooth(cond[0].permute(2, 0, 1))
    evened = tokens / (tokens.mean((1, 2), keepdim=True) + 1e-8)
    region = evened.argmax(0)
    plain = smooth(null[0].permute(2, 0, 1))
    pair = torch.stack([plain[0], plain[1:].sum(0)])
    front = (pair / (pair.mean((1, 2), keepdim=True) + 1e-8)).argmax(0) != 0
    response = (c - u)[0].norm(dim=0)
    g = torch.empty_like(response)
    goal = response[front].mean() if front.any() else response.mean()
    for j in range(len(tokens)):
        g[region == j] = goal / response[region == j].mean()
    g = g.clamp(low, high).clamp(max=cap / w)
    return u + w * gaussian_blur(g, 0.5, 3) * (c - u)


@pytest.mark.parametrize(("w", "low", "high", "cap"), [(3.0, 0.8, 3.0, 15.0), (7.0, 0.0, 9.0, 7.5)])
def test_by_hand(w, low, high, cap):
    c, u = normal(1, 3, 8, 8, seed=5), normal(1, 3, 8, 8, seed=6)
    c[..., :4] *= 4  # uneven responses
    cond, null = matrices(8, 5, 1)[0], matrices(8, 5, 2)[0]
    out = guided(f"cfg({w}) | scfg(ratio=1, low={low}, high={high}, cap={cap})", c, u,
                 {"c": cond}, {"c": null})  # fmt: skip
    assert_close(out, by_hand(c, u, w, cond, null, low, high, cap, 8), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(out, u + w * (c - u), atol=0.1)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_self_attention_carries_the_maps(form):
    rule = fl.SCFG(ratio=2, form=form)
    (cross, own), (other, _) = matrices(4, 3, 1), matrices(2, 3, 7)
    s = own.reshape(16, 16)
    series = (s + s @ s + s @ s @ s + s @ s @ s @ s) / 4 if form == "paper" else (s + 3 * s @ s) / 4
    found = rule.tokens([(False, own), (True, cross), (True, other)], 1)
    expected = (series @ cross.reshape(16, 3)).T.reshape(1, 3, 1, 4, 4)
    width = 0.5 if form == "paper" else 0.5**0.5
    assert_close(found[0], gaussian_blur(expected, width, 3))
    coarse = torch.nn.functional.interpolate(other.permute(0, 3, 1, 2), (4, 4), mode="bilinear")
    assert_close(found[1], gaussian_blur(coarse[:, :, None], width, 3))
    # the self-attention before the layer counts, else the first after it
    first, second = matrices(4, 3, 20)[1], matrices(4, 3, 30)[1]
    calls = [(False, first), (False, own), (True, cross), (False, second)]
    assert_close(rule.tokens(calls, 1)[0], found[0])
    assert_close(rule.tokens([(True, cross), (False, own)], 1)[0], found[0])


@given(st.integers(2, 6), st.integers(1, 4), st.floats(1.1, 15.0), st.integers(0, 99))
def test_even_responses_are_cfg(tokens, batch, w, seed):
    u = normal(batch, 3, 8, 8, seed=seed)
    c = u + torch.nn.functional.normalize(normal(batch, 3, 8, 8, seed=seed + 1), dim=1)
    cross, own = matrices(4, tokens, seed, batch=batch)
    maps = {"s": own, "c": cross}
    out = guided(f"cfg({w}) | scfg(ratio=2)", c, u, maps, maps)
    assert_close(out, u + w * (c - u), rtol=1e-6, atol=1e-6)  # up to 1e-8 in the divisions
    c = normal(batch, 3, 8, 8, seed=seed + 2)
    fixed = guided(f"cfg({w}) | scfg(ratio=2, low=1, high=1)", c, u, maps, maps)
    assert torch.equal(fixed, c + (w - 1) * (c - u))


def test_the_cap_bounds_the_scale():
    c, u = normal(1, 3, 8, 8, seed=5), normal(1, 3, 8, 8, seed=6)
    cross, own = matrices(4, 3, 1)
    maps = {"s": own, "c": cross}
    out = guided("cfg(20) | scfg(ratio=2, low=1, high=1)", c, u, maps, maps)
    assert_close(out, u + 15 * (c - u))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_evened_regions_have_the_mean_of_the_foreground(batch, tokens, seed):
    response = normal(batch, 1, 4, 4, seed=seed).abs() + 0.1
    generator = torch.Generator().manual_seed(seed)
    region = torch.randint(tokens, (batch, 1, 4, 4), generator=generator)
    front = torch.rand(batch, 1, 4, 4, generator=generator) > 0.5
    evened = response * evening(response, region, front)
    for b in range(batch):
        goal = response[b][front[b]].mean() if front[b].any() else response[b].mean()
        for j in region[b].unique():
            mean = evened[b][region[b] == j].mean()
            assert_close(mean, goal, rtol=1e-6, atol=1e-6)


def test_videos_frame_by_frame_or_in_one_sequence():
    rule = fl.SCFG(ratio=2)
    cross, own = matrices(2, 3, 1, frames=3, batch=2)
    whole = rule.tokens([(False, own), (True, cross)], 2)[0]
    assert whole.shape == (2, 3, 3, 2, 2)
    folded, _ = matrices(2, 3, 1, batch=6)  # each frame for itself
    each = rule.tokens([(True, folded)], 2)[0]
    assert_close(each[1, :, 2], rule.tokens([(True, folded[5:])], 1)[0][0, :, 0])
    c, u = normal(2, 2, 3, 4, 4, seed=5), normal(2, 2, 3, 4, 4, seed=6)
    maps = {"s": own, "c": cross}
    out = guided("cfg(3) | scfg(ratio=2)", c, u, maps, maps)
    single = guided(
        "cfg(3) | scfg(ratio=2)", c[1:], u[1:], *[{k: v[1:] for k, v in maps.items()}] * 2
    )
    assert_close(out[1:], single)


def test_regions_partition_the_image_and_maps_are_captured():
    d = tiny_denoiser(dtype=torch.float64, text=True)
    out = fl.sample(d, LABEL, guide="cfg(5) | scfg(ratio=2)", **OPTIONS)
    plain = fl.sample(d, LABEL, guide="cfg(5)", **OPTIONS)
    assert out.nfe.tolist() == plain.nfe.tolist()
    assert not torch.allclose(out.x, plain.x, atol=1e-3)
    cached = fl.sample(d, LABEL, guide="cfg(5) | scfg(ratio=2)", max_batch=1, **OPTIONS)
    assert_close(out.x, cached.x, rtol=1e-9, atol=1e-9)


def test_errors():
    d = tiny_denoiser(text=True)
    with pytest.raises(ValueError, match=r"scfg: no cross attention layer matches.*has: text\.0"):
        fl.sample(d, LABEL, guide="cfg(5) | scfg('mid', ratio=2)", steps=1)
    with pytest.raises(ValueError, match=r"scfg: no cross attention layer .*network has: none"):
        fl.sample(tiny_denoiser(), LABEL, guide="cfg(5) | scfg(ratio=2)", steps=1)
    with pytest.raises(ValueError, match=r"scfg: no cross-attention has a grid of 1/4"):
        fl.sample(d, LABEL, guide="cfg(5) | scfg()", steps=1)
    with pytest.raises(ValueError, match=r"scfg: there are no attention maps.*fl\.sample"):
        fl.combine("cfg(5) | scfg()", VALUES)
    with pytest.raises(ValueError, match=r"scfg: low must be at most high = 0\.5, got 0\.8"):
        fl.SCFG(high=0.5)
    with pytest.raises(ValueError, match="scfg: ratio must be one of 1, 2, 4, 8, got 3"):
        fl.SCFG(ratio=3)
    with pytest.raises(ValueError, match="scfg: form must be one of"):
        fl.SCFG(form="theirs")
