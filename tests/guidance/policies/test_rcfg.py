"""Residual CFG: the identities of its two references, by hand, and its cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.testing import pairs, tiny_denoiser

LABEL = {"label": [3, 5]}
SCHEDULE = fl.schedules.VP()
times = st.floats(0.05, 0.95)


def at(t, x, reference=None, **given):
    run = fl.Run(check=False, reference=reference)
    return lambda guide: fl.combine(guide, given, x=x, t=t, schedule=SCHEDULE, run=run)


@settings(max_examples=25)
@given(pairs(), pairs(), times, st.floats(0.1, 8))
def test_self_negative_is_cfg_with_a_constant_weak_prediction(cu, xr, t, w):
    cond, (x, reference) = cu[0], xr
    out = at(t, x, reference, cond=cond, null=cond)(fl.CFG(w) | fl.ResidualCFG())
    assert_close(out, reference + w * (cond - reference), rtol=1e-12, atol=1e-12)


@settings(max_examples=25)
@given(pairs(), pairs(), times, st.floats(1, 8), st.floats(0.5, 1.5))
def test_damping_acts_on_the_virtual_noise(cu, xr, t, w, delta):
    cond, (x, reference) = cu[0], xr
    level = SCHEDULE.level(t)
    out = at(t, x, reference, cond=cond)(fl.CFG(w) | fl.ResidualCFG(delta=delta))
    eps, virtual = ((x - level.alpha * d) / level.sigma for d in (cond, reference))
    guided = delta * virtual + w * (eps - delta * virtual)
    # errors of 1e-16 in the noise are larger by sigma/alpha <= 400 in the clean estimate
    assert_close(level.alpha * out + level.sigma * guided, x, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(pairs(), times, st.floats(0.5, 1.5))
def test_scale_one_is_conditional_for_every_damping(cu, t, delta):
    x, cond = cu
    out = at(t, x, x, cond=cond)(fl.CFG(1.0) | fl.ResidualCFG(delta=delta))
    assert torch.equal(out, cond)


def test_at_the_first_level_the_virtual_noise_is_the_noise_that_was_added():
    reference, n = torch.ones(1, 3).double(), torch.tensor([[0.3, -1.0, 2.0]]).double()
    level = SCHEDULE.level(0.7)
    x = level.alpha * reference + level.sigma * n
    run, c = fl.Run(reference=reference), 0 * x
    out = fl.combine("cfg(2) | rcfg()", {"cond": c}, x=x, t=level, run=run)
    eps = (x - level.alpha * c) / level.sigma
    assert_close((x - level.alpha * out) / level.sigma, n + 2 * (eps - n))


@pytest.mark.parametrize(("mode", "delta"), [("self", 1.0), ("self", 0.7), ("onetime", 0.7)])
def test_the_recursion_on_stock_noise_is_the_same(mode, delta):
    """`s' = n' + alpha'/sigma' (sigma s - sigma eps_w)/alpha`, where nothing is blended."""
    d, w = tiny_denoiser(fl.schedules.VP(), dtype=torch.float64), 1.5
    generator = torch.Generator().manual_seed(0)
    source, *noises = (torch.randn(2, 2, 8, 8, generator=generator).double() for _ in range(5))
    levels = [SCHEDULE.level(t) for t in (0.8, 0.6, 0.4, 0.2)]
    run = fl.Run(0, range(2), 4, reference=source)
    states = {"cond": fl.Condition(LABEL)}
    guide = fl.CFG(w) | fl.ResidualCFG(mode, delta=delta)
    model = GuidedModel(guide, Evaluator(d, states), run)

    x = levels[0].alpha * source + levels[0].sigma * noises[0]
    start = x
    for i, level in enumerate(levels):
        model.begin(level)
        denoised = model(x, level).denoise
        if i < 3:
            x = levels[i + 1].alpha * denoised + levels[i + 1].sigma * noises[i + 1]

    def eps(x, level, condition):
        return (x - level.alpha * d(x, level, condition)) / level.sigma

    x, stock = start, noises[0]
    if mode == "onetime":
        stock = eps(x, levels[0], {"label": [10, 10]})
    for i, level in enumerate(levels):
        # at the first level the branch itself was evaluated, and is not damped
        damped = stock if mode == "onetime" and i == 0 else delta * stock
        guided = damped + w * (eps(x, level, LABEL) - damped)
        clean = (x - level.sigma * guided) / level.alpha
        if i < 3:
            after = levels[i + 1]
            # the reference in the noise of the next level
            left = level.sigma * (stock - guided) / level.alpha
            stock = noises[i + 1] + after.alpha / after.sigma * left
            x = after.alpha * clean + after.sigma * noises[i + 1]
    assert_close(clean, denoised, rtol=1e-9, atol=1e-9)
    assert run.report.nfe == (4 if mode == "self" else 5)


def test_onetime_with_one_step_is_full_cfg():
    options = {"steps": 1, "sampler": "ddim"}
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | rcfg('onetime')", **options)
    assert torch.equal(out.x, fl.sample(tiny_denoiser(), LABEL, guide="cfg(3)", **options).x)


def test_cost_and_provenance():
    options = {"steps": 4, "sampler": "ddim"}
    once = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | rcfg('onetime')", **options)
    assert once.nfe.tolist() == [5, 5]
    assert [e.provenance["null"] for e in once.report.entries] == [
        "evaluated", *["analytic (onetime)"] * 3
    ]  # fmt: skip
    own = fl.sample(
        tiny_denoiser(), LABEL, guide="cfg(3) | rcfg()", reference=torch.zeros(1, 2, 8, 8),
        **options,
    )  # fmt: skip
    assert own.nfe.tolist() == [4, 4]


def test_samples_that_are_guided_later_are_evaluated_once_each():
    d = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1]).denoiser(fl.schedules.EDM())
    policy, run = fl.ResidualCFG("onetime"), fl.Run(0, range(2), 4)
    states = {"cond": fl.Condition({"label": [0, 1]})}
    model, level = GuidedModel(fl.CFG(2.0), Evaluator(d, states), run), d.schedule.level(1.0)
    for weights, spent in [((3.0, 1.0), [2, 1]), ((3.0, 3.0), [3, 3]), ((3.0, 3.0), [4, 4])]:
        model.guide = fl.CFG(weights) | policy
        model.begin(level)
        model(torch.zeros(2, 1), level)
        assert run.report.nfe.tolist() == spent


def test_only_the_named_branches_are_replaced():
    guide = fl.guide("cfg(3) + pag(2) | rcfg('onetime', only=['null'])")
    out = fl.sample(tiny_denoiser(), LABEL, guide=guide, steps=3, sampler="ddim")
    assert out.nfe.tolist() == [7, 7]


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"rcfg: mode='self' needs the clean samples"):
        fl.sample(tiny_denoiser(), LABEL, guide="cfg(2) | rcfg()", steps=2)
    with pytest.raises(ValueError, match="rcfg: only names the base branch"):
        fl.ResidualCFG(only=("cond",))
    with pytest.raises(ValueError, match="rcfg: mode must be one of self, onetime, got 'full'"):
        fl.ResidualCFG("full")
    with pytest.raises(ValueError, match="rcfg: delta must be 1 where alpha = 0"):
        fl.sample(
            tiny_denoiser(fl.schedules.RectifiedFlow()), LABEL, guide="cfg(2) | rcfg(delta=0.5)",
            steps=2, reference=torch.zeros(1, 2, 8, 8),
        )  # fmt: skip
