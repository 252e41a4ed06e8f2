"""VQ-Diffusion's sampling: strides, plans and purity, against closed forms of short sequences."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead import nulls
from fairlead.discrete import VQ, Masked, MaskedUniform, TokenDenoiser, Uniform
from fairlead.discrete.vq import released_plan
from fairlead.exact import golden_tokens, token_law

TOY = golden_tokens()
C = {"label": 0}
MASKED = TOY.denoiser(Masked(2, eps=0.0))


def law(sampler, steps, denoiser=MASKED, guide="cfg(2)", **options):
    return token_law(denoiser, C, guide=guide, sampler=sampler, steps=steps, **options)


@pytest.mark.parametrize(
    ("steps", "stride", "indices"),
    [
        (100, 4, [*range(99, -1, -4), 0]),
        (100, 3, [*range(99, -1, -3)]),  # ends at 0 by itself
        (10, 20, [9, 0]),
        (5, 1, [4, 3, 2, 1, 0]),
    ],
)
def test_visited_levels(steps, stride, indices):
    levels = VQ("all", stride=stride).grid(MaskedUniform(2, steps=steps), steps)
    assert [v.t for v in levels] == pytest.approx([(i + 1) / steps for i in indices] + [0])


def test_cost_is_one_evaluation_for_each_visited_level():
    out = fl.discrete.sample(
        MASKED, C, guide="cfg(2)", sampler="vq('all', stride=4)", steps=10, n=2
    )
    assert out.nfe.tolist() == [2 * 4] * 2  # t = 9, 5, 1, 0


@pytest.mark.parametrize("process", [Masked(2, eps=0.0), MaskedUniform(2, steps=12)])
def test_exact_stride_is_the_ancestral_sampler_on_those_levels(process):
    d = TOY.denoiser(process)
    levels = VQ("all", stride=3).grid(process, 12)
    mine = law("vq('all', stride=3, skip='exact')", 12, d)
    assert_close(mine, law("ancestral", 12, d, levels=levels))
    assert_close(law("vq('all', stride=1)", 4, d), law("ancestral", 4, d))


def test_released_stride_writes_as_one_step_of_the_schedule_would():
    # c_t = t: visited t = 11, 8, 5, 2 (of 12, + 1 over 12) and 0; a mask stays with c_t / c_s of
    # the lowered step, whatever it is that guides
    stay = math.prod(end / (end + 1) for end in (9, 6, 3, 2))
    levels = VQ("all", stride=3).grid(MASKED.process, 12)[:-1]
    assert [round(v.t * 12) for v in levels] == [12, 9, 6, 3, 1]

    def masks(sampler):
        inside = law(f"vq('all', stride=3{sampler})", 12, levels=levels).reshape(3, 3)
        return (inside.sum(0)[2] + inside.sum(1)[2]).item() / 2

    assert masks(", skip='exact'") == pytest.approx(1 / 12)

    class Short(VQ):  # the walk without its last step, whose level says how long a step is
        name = "vq"

        def step(self, model, z, s, t, draws):
            return z if t.t == 0 else super().step(model, z, s, t, draws)

        def finish(self, model, z, t, draws):
            return z

    states = token_law(MASKED, C, guide="cfg(2)", sampler=Short("all", stride=3), steps=12)
    table = states.reshape(3, 3)
    assert (table.sum(0)[2] + table.sum(1)[2]).item() / 2 == pytest.approx(stay)


def test_released_stride_is_the_one_step_posterior_everywhere():
    process = MaskedUniform(3, steps=20)
    d = TokenDenoiser(lambda z, t: torch.arange(3).float().expand(*z.shape, 3), process, length=1)
    levels = VQ("all", stride=4).grid(process, 20)
    log_x = torch.log_softmax(torch.arange(3).double(), 0).expand(1, 1, 3)
    p = process.prior()
    for s, _ in pairwise(levels):
        index = round(s.t * 20) - 1
        end = index - 4 if index >= 4 else max(index - 1, -1)
        a, b = process.level((end + 2) / 20), process.level((end + 1) / 20)
        rows = [
            process.log_posterior(log_x, torch.tensor([[i]]), a, b, "mixture").exp()[0, 0]
            for i in range(4)
        ]
        p = p @ torch.stack(rows)
    assert_close(token_law(d, sampler="vq('all', stride=4)", steps=20), p)


@pytest.mark.parametrize(("steps", "per", "total"), [
    (100, 11, 1025), (100, 10, 1025), (50, 20, 1024), (25, 40, 1024), (10, 102, 1024)
])  # fmt: skip
def test_released_plans(steps, per, total):
    plan = released_plan(steps, per)
    assert len(plan) == steps
    assert sum(plan) == total


@pytest.mark.parametrize(("steps", "left"), [(10, 69), (25, 21), (100, 0)])
def test_released_plan_leaves_the_first_entry_to_the_last_step(steps, left):
    d = TokenDenoiser(lambda z, t: torch.zeros(*z.shape, 2), Masked(2), length=1024)
    masks = []
    fl.discrete.sample(
        d,
        sampler=f"vq('uniform', per={1024 // steps + 1}, plan='released')",
        steps=steps,
        callback=lambda i, z: masks.append(int((z == 2).sum())),
    )
    assert masks[-2:] == [left, 0]
    assert masks[0] == 1024 - released_plan(steps, 1024 // steps + 1)[0]


@pytest.mark.parametrize("r", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("w", [1.0, 2.0])
def test_purity_by_hand(w, r):
    def tempered(c, u):
        p = c**w * u ** (1 - w)
        return p / p.sum(-1, keepdim=True)

    def sharpened(p, share):
        q = p ** (1 + r * share)
        return q / q.sum(-1, keepdim=True)

    expected = torch.zeros(2, 2).double()
    c, u = (TOY.laws[i].reshape(2, 2) for i in (0, 2))
    first = [tempered(c.sum(1 - i), u.sum(1 - i)) for i in (0, 1)]
    purity = torch.stack([p.max() for p in first])
    for i, (a, b) in product((0, 1), product((0, 1), repeat=2)):
        x = (a, b)
        rows = [t if i == 0 else t.T for t in (c, u)]
        later = tempered(*(t[x[i]] / t[x[i]].sum() for t in rows))
        start = sharpened(first[i], purity[i] / purity.max())[x[i]]
        # what is written is sure, so the other position's purity is in units of 1
        expected[a, b] += purity[i] / purity.sum() * start * sharpened(later, later.max())[x[1 - i]]
    out = law(f"vq('purity', sharpen={r}, per=1, leftover=False)", 2, guide=f"cfg({w})")
    assert_close(out.reshape(3, 3)[:2, :2], expected)


def test_one_iteration_a_step_is_maskgit_in_random_order():
    # two tokens: one is written in each of two steps; the last step of vq finds nothing to do
    assert_close(law("vq('uniform', per=2)", 3), law("maskgit(order='random')", 2))


def test_learned_null_is_the_branch_that_it_says():
    learnt, asked = torch.tensor([0.3, -1.2, 0.4]), torch.tensor([1.0, 0.5, -0.7])

    def net(z, t, text):
        return text[:, None].expand(*z.shape, 3)

    d = TokenDenoiser(net, MaskedUniform(3, steps=5), {"text": nulls.learned(learnt)}, length=1)
    out = token_law(d, {"text": asked[None]}, guide="cfg(3)", sampler="vq('all')", steps=5)
    # with one position and a network blind to it the law is that of the last evaluation
    expected = torch.softmax(3 * asked.log_softmax(0) - 2 * learnt.log_softmax(0), 0).double()
    assert_close(out[:3], expected, rtol=1e-6, atol=1e-6)  # the network is in float32


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("vq('uniform', stride=2)", r"vq: stride must be 1 with prior='uniform', got 2"),
        ("vq('all', stride=0)", r"vq: stride must be in \[1, inf\)"),
        ("vq('all', skip='both')", "vq: skip must be one of"),
        ("vq(plan='released')", r"plan='released' knows 1024 tokens .* got 2 in 10"),
    ],
)
def test_errors(sampler, message):
    with pytest.raises(ValueError, match=message):
        fl.discrete.sample(MASKED, C, sampler=sampler, steps=10)


def test_masks_are_needed():
    with pytest.raises(ValueError, match="vq: needs a process with masks, not uniform"):
        fl.discrete.sample(TOY.denoiser(Uniform(2)), C, sampler="vq('all')")
