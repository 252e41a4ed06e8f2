"""CFG++: its step by hand, and its identity with CFG under a weight that varies by step."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import tiny_denoiser

VP, EDM = fl.schedules.VP("scaled_linear"), fl.schedules.EDM(sigma_max=20.0)
SCHEDULES = pytest.mark.parametrize("schedule", [VP, EDM], ids=["vp", "edm"])
OPTIONS = {"dtype": torch.float64, "sampler": "ddim"}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; batches of other sizes differ in the last bits
LABEL = {"label": [3, 5]}


def double(schedule):
    return tiny_denoiser(schedule, dtype=torch.float64)


def noise(d):
    run = fl.Run(0, range(2))
    return d.schedule.grid(4)[0].sigma * run.normal(torch.empty(2, 2, 8, 8).double(), "start")


@SCHEDULES
@pytest.mark.parametrize("k", [0.0, 0.3, 1.0])
def test_steps_by_hand(schedule, k):
    d, lam = double(schedule), 0.6
    x = noise(d)
    out = fl.sample(d, LABEL, guide=fl.CFGpp(lam, k), steps=4, x=x, **OPTIONS)
    for s, t in pairwise(schedule.grid(4)):
        c, u = d(x, s, LABEL), d(x, s, {"label": [10, 10]})
        guided = u + lam * (c - u)
        eps = (x - s.alpha * (u + k * (guided - u))) / s.sigma
        x = t.alpha * guided + t.sigma * eps
    assert_close(out.x, x, **CLOSE)


@SCHEDULES
@pytest.mark.parametrize("lam", [0.2, 0.6, 1.0])
def test_first_order_is_cfg_with_a_weight_by_step(schedule, lam):
    d = double(schedule)
    x = noise(d)
    for s, t in pairwise(schedule.grid(5)):
        r = (t.sigma / t.alpha) / (s.sigma / s.alpha)
        ends = []
        for guide in (fl.CFGpp(lam), fl.CFG(lam / (1 - r))):
            model = guided(d, guide, s)
            ends.append(fl.samplers.DDIM().step(model, x, s, t))
        assert_close(*ends, **CLOSE)
        x = ends[0]


def guided(d, guide, level):
    from fairlead.guidance.evaluator import Evaluator
    from fairlead.guidance.guided import GuidedModel

    run = fl.Run(0, range(2), 5)
    model = GuidedModel(guide, Evaluator(d, {"cond": fl.Condition(LABEL)}), run)
    model.begin(level)
    return model


@SCHEDULES
def test_lambda_zero_is_unconditional(schedule):
    d = double(schedule)
    null = fl.sample(d, {"label": [10, 10]}, steps=5, **OPTIONS)
    assert_close(fl.sample(d, LABEL, guide="cfgpp(0)", steps=5, **OPTIONS).x, null.x, **CLOSE)


def test_null_condition_makes_it_plain():
    d = double(VP)
    out = fl.sample(d, {"label": [10, 10]}, guide="cfgpp(0.6)", steps=5, **OPTIONS)
    assert_close(out.x, fl.sample(d, {"label": [10, 10]}, steps=5, **OPTIONS).x, **CLOSE)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_the_far_end_of_the_bridge_is_cfg(sampler):
    d, options = double(EDM), {**OPTIONS, "sampler": sampler, "steps": 5}
    bridge = fl.sample(d, LABEL, guide="cfgpp(0.6, k=1)", **options)
    assert_close(bridge.x, fl.sample(d, LABEL, guide="cfg(0.6)", **options).x, **CLOSE)


def test_the_denoised_end_by_hand():
    c, u = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, -2.0]])
    out = fl.combine("cfgpp(0.25)", {"cond": c, "null": u})
    assert_close(out, torch.tensor([[-0.5, -1.5]]))


def test_outside_an_interval_it_renoises_with_the_conditional():
    d = double(EDM)
    out = fl.sample(d, LABEL, guide="cfgpp(0.6) | interval(0.5, 0.5)", steps=5, **OPTIONS)
    plain = fl.sample(d, LABEL, steps=5, **OPTIONS)
    assert torch.equal(out.x, plain.x)
    assert torch.equal(out.nfe, plain.nfe)


@pytest.mark.parametrize("text", ["cfgpp(0.6) + cfgpp(0.5)", "(cfgpp(0.6) | apg()) + cfgpp(0.5)"])
def test_two_claims_are_refused(text):
    with pytest.raises(ValueError, match=r"cfgpp\(0\.6\) and cfgpp\(0\.5\) both claim the renoise"):
        fl.guide(text)


@pytest.mark.parametrize(("name", "value"), [("lam", 1.1), ("lam", -0.1), ("k", 2.0)])
def test_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=rf"cfgpp: {name} must be in \[0, 1\], got {value}"):
        fl.CFGpp(**{"lam": 0.5, name: value})


def test_weight_that_differs_between_places_is_no_switch():
    """Under a mask the weight is a map: the null still renoises."""
    from fairlead.testing.checks import MASKS, draw

    out = draw(fl.guide("cfgpp(0.6) | region('left')"), tiny_denoiser(), masks=MASKS)
    assert out.x.isfinite().all()
