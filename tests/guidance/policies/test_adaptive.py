"""Adaptive Guidance: the switch by hand, its cost, and what it leaves alone."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.prediction import from_x0
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 6, "sampler": "ddim"}


def at_angle(*cosines):
    """Branches in the plane: cond along the first axis, null at given cosines to it."""
    u = torch.tensor([[c, (1 - c * c) ** 0.5] for c in cosines])
    return {"cond": torch.tensor([[1.0, 0.0]]).repeat(len(cosines), 1), "null": u}


def guided(out, branches, w=3.0):
    c, u = branches["cond"], branches["null"]
    return [bool(torch.allclose(o, b + w * (a - b))) for o, a, b in zip(out, c, u, strict=True)]


def test_switch_is_per_sample_from_the_next_step_and_never_undone():
    guide = fl.CFG(3.0) | fl.AdaptiveGuidance(0.9, space="sample")
    run = fl.Run(steps=4)
    seen = []
    for cosines in [(0.5, 0.5), (0.95, 0.5), (0.5, 0.95), (0.5, 0.5)]:
        branches = at_angle(*cosines)
        out = fl.combine(guide, branches, run=run)
        seen.append(guided(out, branches))
    # sample 0 reaches 0.9 in step 1 and is off from step 2; sample 1 one step later
    assert seen == [[True, True], [True, True], [False, True], [False, False]]


def test_off_means_conditional_to_the_bit():
    guide, run = fl.CFG(3.0) | fl.AdaptiveGuidance(-1.0, space="sample"), fl.Run(steps=2)
    fl.combine(guide, at_angle(0.1), run=run)
    branches = at_angle(0.2)
    assert torch.equal(fl.combine(guide, branches, run=run), branches["cond"])


def test_batch_scope_waits_for_all():
    guide = fl.CFG(3.0) | fl.AdaptiveGuidance(0.9, scope="batch", space="sample")
    run, seen = fl.Run(steps=4), []
    for cosines in [(0.5, 0.5), (0.95, 0.5), (0.95, 0.95), (0.5, 0.5)]:
        branches = at_angle(*cosines)
        seen.append(guided(fl.combine(guide, branches, run=run), branches))
    # alone, sample 0 would have been off from step 2
    assert seen == [[True, True], [True, True], [True, True], [False, False]]


def test_cosine_is_measured_in_noise_space():
    level = fl.schedules.EDM().level(2.0)
    x = torch.tensor([[3.0, 1.0]])
    branches = at_angle(0.0)
    eps = [from_x0(b, x, 1.0, 2.0, "epsilon") for b in branches.values()]
    cosine = torch.nn.functional.cosine_similarity(*eps).item()
    assert 0.1 < cosine < 0.99  # in x0 space it is 0
    for threshold, on in [(cosine + 1e-4, True), (cosine - 1e-4, False)]:
        run = fl.Run(steps=4)
        run.step = 0  # past the first step, where a hit warns
        guide = fl.CFG(3.0) | fl.AdaptiveGuidance(threshold)
        for _ in range(2):
            out = fl.combine(guide, branches, x=x, t=level, run=run)
        assert guided(out, branches) == [on]


@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.99])
def test_cost_is_the_formula(threshold):
    out = fl.sample(
        tiny_denoiser(), LABEL, guide=fl.CFG(3.0) | fl.AdaptiveGuidance(threshold, guard=0.3),
        **OPTIONS
    )  # fmt: skip
    plain = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3)", **OPTIONS)
    assert (out.nfe <= plain.nfe).all()
    n = 6
    for i, cost in enumerate(out.nfe.tolist()):
        k = first_parallel(threshold, i, n)
        assert cost == (2 * (k + 1) + (n - k - 1) if k is not None else 2 * n)


def first_parallel(threshold, sample, n):
    """The first step, from the guard on, whose cosine under plain CFG reaches the threshold."""
    d = tiny_denoiser()
    grid = d.schedule.grid(n)
    x = grid[0].sigma * fl.Run(0, [sample]).normal(torch.empty(1, 2, 8, 8), "start")
    for i, (s, t) in enumerate(pairwise(grid)):
        c, u = d(x, s, {"label": [LABEL["label"][sample]]}), d(x, s, {"label": [10]})
        ec, eu = ((x - v) / s.sigma for v in (c, u))
        cosine = torch.nn.functional.cosine_similarity(ec.flatten(), eu.flatten(), dim=0)
        if i / n >= 0.3 and cosine >= threshold:
            return i
        guided = u + 3 * (c - u)
        x = guided + t.sigma * (x - guided) / s.sigma
    return None


def test_threshold_above_one_is_cfg():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | adaptive(1.5)", **OPTIONS)
    cfg = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3)", **OPTIONS)
    assert torch.equal(out.x, cfg.x)
    assert out.nfe.tolist() == [12, 12]


def test_threshold_of_minus_one_is_one_guided_step():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | adaptive(-1)", **OPTIONS)
    window = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | interval(0, 0.1)", **OPTIONS)
    assert torch.equal(out.x, window.x)
    assert out.nfe.tolist() == [7, 7]


def test_scale_one_does_not_depend_on_the_threshold():
    for threshold in (-1.0, 0.9, 1.5):
        out = fl.sample(
            tiny_denoiser(), LABEL, guide=fl.CFG(1.0) | fl.AdaptiveGuidance(threshold), **OPTIONS
        )
        assert torch.equal(out.x, fl.sample(tiny_denoiser(), LABEL, **OPTIONS).x)


def test_guard_waits():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | adaptive(-1, guard=0.5)", **OPTIONS)
    assert out.nfe.tolist() == [10, 10]  # guided in the steps 0 to 3


def test_firing_at_the_first_step_warns():
    with pytest.warns(UserWarning, match="adaptive: guidance is switched off at the first step"):
        fl.combine("cfg(3) | adaptive(0.5, space='sample')", at_angle(0.9), run=fl.Run(steps=4))


def test_two_stage_solver_decides_once_a_step():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | adaptive(-1)", steps=4, sampler="heun")
    assert out.nfe.tolist() == [4 + 5, 4 + 5]  # both stages of step 0 are guided


def test_unconditional_scale_has_nothing_to_compare():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(0) | adaptive(guard=0.2)", **OPTIONS)
    assert_close(out.x, fl.sample(tiny_denoiser(), LABEL, guide="cfg(0)", **OPTIONS).x)


def test_restart_drops_the_solvers_history_once():
    options = {"steps": 6, "sampler": "dpmpp_2m"}
    texts = ["adaptive(-1, scope='batch')", "adaptive(-1, scope='batch', restart=True)"]
    kept, dropped = (
        fl.sample(tiny_denoiser(), LABEL, guide=f"cfg(3) | {t}", **options) for t in texts
    )
    assert torch.equal(kept.nfe, dropped.nfe)
    assert not torch.allclose(kept.x, dropped.x, atol=1e-6)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"adaptive: restart needs scope='batch'"):
        fl.AdaptiveGuidance(restart=True)
    with pytest.raises(ValueError, match="adaptive: scope must be one of sample, batch"):
        fl.AdaptiveGuidance(scope="all")
    with pytest.raises(ValueError, match=r"adaptive: guard must be in \[0, 1\], got 1\.5"):
        fl.AdaptiveGuidance(guard=1.5)
