"""Token merging: the matching by hand, its identities, what it draws, networks, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.attention import Edit, attending, find_attention
from fairlead.guidance.policies.merge import Merged, cells, match, pooled
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 3, "dtype": torch.float64, "seed": 4, "sampler": "ddim"}


def draws(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    # tokens 0 and 3 are kept; 1 is like 0, 2 like 3, 4 unlike both but outside the pool
    features = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.2, 0.8], [0.0, 1.0], [-1.0, -1.1]]])
    kept = torch.tensor([[True, False, False, True, False]])
    pool = torch.tensor([[True, True, True, True, False]])
    found = match(features.double(), pool, kept, 2)
    assert found.merged.tolist() == [[4, 1]]  # outside the pool first, then the most alike
    assert found.into.tolist() == [[0, 0]]
    assert found.alone.tolist() == [[2]]
    assert found.kept.tolist() == [[0, 3]]
    tokens = torch.arange(5.0).reshape(1, 1, 5, 1)
    assert found.merge(tokens).flatten().tolist() == pytest.approx([2, (0 + 4 + 1) / 3, 3])
    assert found.merge(tokens, mean=False).flatten().tolist() == [2, 0, 3]
    back = found.unmerge(torch.tensor([10.0, 20.0, 30.0]).reshape(1, 1, 3, 1))
    assert back.flatten().tolist() == [20, 20, 10, 30, 20]


@given(st.integers(4, 40), st.integers(0, 99), st.floats(0, 0.75))
def test_unmerging_puts_every_token_back(n, seed, ratio):
    number, count = n // 4, int(ratio * n)
    pool, kept = pooled(draws(2, n, seed=seed), draws(2, 2, n, seed=seed + 1), n - count, number)
    assert kept.sum(1).tolist() == [number] * 2
    assert bool((pool | ~kept).all())  # drawn from the pool
    found = match(draws(2, n, 3, seed=seed + 2), pool, kept, count)
    tokens = draws(2, 2, n, 3, seed=seed + 3)
    back = found.unmerge(found.merge(tokens, mean=False))
    stays = torch.cat([found.alone, found.kept], 1)
    for b in range(2):
        assert torch.equal(back[b][:, stays[b]], tokens[b][:, stays[b]])
        assert torch.equal(back[b][:, found.merged[b]], tokens[b][:, found.kept[b, found.into[b]]])
    same = tokens[:, :, :1].expand(tokens.shape)
    assert_close(found.unmerge(found.merge(same)), same)


def test_ties_are_drawn_at_random():
    even = torch.ones(400, 64, dtype=torch.float64)
    pool, kept = pooled(even, draws(2, 400, 64), 28, 16)
    assert pool.sum(1).unique().tolist() == [28]
    assert bool(kept.any(0).all())  # every token can be drawn, though a pool holds 28


def test_the_most_important_make_the_pool():
    importance = torch.arange(8.0).expand(3, 8).double()
    pool, kept = pooled(importance, draws(2, 3, 8), 3, 3)
    assert pool[0].tolist() == [False] * 5 + [True] * 3
    assert torch.equal(pool, kept)


@pytest.mark.parametrize("grid", [(4, 4), (5, 4), (1, 6), (2, 4, 4)])
def test_one_token_of_each_cell(grid):
    n = torch.Size(grid).numel()
    mask = cells(draws(3, n), grid)
    frames = n // (grid[-2] * grid[-1])
    h, w = max(1, grid[-2] // 2), grid[-1] // 2
    assert mask.sum(1).tolist() == [frames * h * w] * 3
    if grid == (4, 4):
        image = mask.reshape(3, 2, 2, 2, 2)
        assert image.sum((2, 4)).unique().tolist() == [1]


def test_changes_the_attention_and_costs_no_evaluation():
    def run(guide, **options):
        return fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide=guide,
                         **{**OPTIONS, **options})  # fmt: skip

    plain, merged = run("cfg(3)"), run("cfg(3) | merge(0.5)")
    assert merged.nfe.tolist() == plain.nfe.tolist()
    assert not torch.allclose(merged.x, plain.x, atol=1e-4)
    assert torch.equal(run("cfg(3) | merge(0)").x, plain.x)
    assert_close(run("cfg(3) | merge(0.5)", max_batch=1).x, merged.x, rtol=1e-9, atol=1e-9)
    averaged = run("cfg(3) | merge(0.5, prune=0)")
    assert not torch.allclose(averaged.x, merged.x, atol=1e-5)


def test_by_distance():
    # token 1 points as token 0 does, but is nearer to token 2
    features = torch.tensor([[[1.0, 0.0], [9.0, 1.0], [8.0, 4.0]]]).double()
    kept = torch.tensor([[True, False, True]])
    pool = torch.ones_like(kept)
    into = [match(features, pool, kept, 1, s).into.item() for s in ("cosine", "euclidean")]
    assert into == [0, 1]

    def run(guide):
        return fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide=guide, **OPTIONS).x

    near = run("cfg(3) | merge(0.5, similarity='euclidean')")
    assert not torch.allclose(near, run("cfg(3) | merge(0.5)"), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_tokens_are_compared_as_the_layer_is_given_them():
    pytest.importorskip("diffusers")
    from diffusers.models.attention_processor import Attention

    network = torch.nn.ModuleDict({"own": Attention(query_dim=8, heads=2, dim_head=4)}).double()
    x, seen = draws(3, 6, 8), []

    def look(call):
        seen.append(call.given)
        return call.attend()

    with attending([Edit(find_attention(network)["own"], 1, 3, look)], 3):
        network["own"](x)
    assert torch.equal(seen[0], x[1:])


def test_all_branches_of_a_sample_draw_the_same_tokens(monkeypatch):
    seen = []
    plain = Merged.__call__

    def call(self, attended, rows, ctx):
        like = torch.empty(len(rows), 4)
        seen.append((attended.layer.name, ctx.normal(like, "merge", rows)))
        return plain(self, attended, rows, ctx)

    monkeypatch.setattr(Merged, "__call__", call)
    fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | merge(0.5, layers='mid')", steps=1)
    (_, cond), (_, null) = seen
    assert torch.equal(cond, null)


def test_finds_its_own_memory_behind_a_rule_with_one():
    # the rule remembers at its own place, which must not be taken for importance
    def run(guide):
        return fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide=guide, **OPTIONS)

    rules = ("", " | apg(beta=0)", " | apg(beta=-0.5)")
    first, second, third = (run(f"cfg(3){r} | merge(0.5)") for r in rules)
    assert first.nfe.tolist() == second.nfe.tolist() == third.nfe.tolist() == [6, 6]
    turned = run("cfg(3) | merge(0.5) | apg(beta=-0.5)")
    assert_close(turned.x, third.x, rtol=1e-9, atol=1e-9)


def test_errors():
    with pytest.raises(ValueError, match=r"merge: ratio must be in \[0, 0\.75\], got 0\.8"):
        fl.TokenMerging(0.8)
    with pytest.raises(ValueError, match=r"merge: similarity must be .*'euclidean'"):
        fl.TokenMerging(0.5, similarity="euclid")
    with pytest.raises(ValueError, match=r"merge: no self attention layer matches 'middle'"):
        fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | merge(0.5, layers='middle')", steps=1)
    with pytest.raises(ValueError, match="changes the base branch for one summand only"):
        fl.guide("(cfg(3) | merge(0.5)) + pag(2)")


def test_cells_are_drawn_in_every_pruned_step_if_asked(monkeypatch):
    drawn = []
    import fairlead.guidance.policies.merge as module

    plain = module.cells
    monkeypatch.setattr(module, "cells", lambda *a: (drawn.append(step[0]), plain(*a))[1])
    step = [0]

    def steps_with_cells(guide):
        drawn.clear()
        step[0] = 0
        fl.sample(
            tiny_denoiser(), LABEL, guide=guide, steps=5, sampler="ddim",
            callback=lambda s: step.__setitem__(0, s.index + 1),
        )  # fmt: skip
        return sorted(set(drawn))

    assert steps_with_cells("cfg(3) | merge(0.5, prune=3)") == [0]
    assert steps_with_cells("cfg(3) | merge(0.5, prune=3, cells=True)") == [0, 1, 2]
    assert steps_with_cells("cfg(3) | merge(0.5, prune=0, cells=True)") == [0]


def test_without_a_null_branch_the_last_response_counts():
    """From half of the run on no response is new, so the second half sees one map."""
    guide = fl.guide("(cfg(3) | interval(0, 0.5)) | merge(0.5, prune=0)")
    run = fl.Run(0, range(2), 4, levels=fl.schedules.EDM().grid(4))
    maps = []
    fl.sample(
        tiny_denoiser(), LABEL, guide=guide, levels=run.levels, sampler="ddim", run=run,
        callback=lambda s: maps.append(next(iter(run._slots.values()))[1].clone()),
    )  # fmt: skip
    assert not torch.equal(maps[0], maps[1])
    assert torch.equal(maps[1], maps[3])
