"""Two levels forward, one back: by hand, the marginal, the ends."""

import math

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM, VP, DiscreteVP, RectifiedFlow

DOUBLE = torch.float64
SCHEDULES = [VP(), EDM(), RectifiedFlow(), DiscreteVP.linear()]


def constant(schedule, value=0.7):
    """Data of one point."""
    return fl.Denoiser(lambda x, t: torch.full_like(x, value), schedule, "sample", shape=(2,))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_by_hand_and_the_marginal_is_exact(schedule):
    d, levels, seen = constant(schedule), schedule.grid(5), []
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    s = levels[0]
    x = s.alpha * 0.7 + s.sigma * start
    options = {"levels": levels, "sampler": "overshoot", "dtype": DOUBLE, "seed": 4}
    out = fl.sample(d, x=x, callback=seen.append, **options)
    run, eps = fl.Run(4, range(3), 5), start
    for i, step in enumerate(seen[:-1]):
        run.advance()
        t, u = levels[i + 1], levels[i + 2]
        fresh = run.normal(x, "sampler", 1)
        kept = t.alpha / u.alpha * u.sigma
        added = math.sqrt(t.sigma**2 - kept**2)
        assert kept**2 + added**2 == pytest.approx(t.sigma**2)
        assert_close(step.x, t.alpha * 0.7 + kept * eps + added * fresh, rtol=1e-8, atol=1e-8)
        eps = (step.x - t.alpha * 0.7) / t.sigma  # standard normal again
    assert_close(out.x, torch.full_like(x, 0.7), rtol=1e-9, atol=1e-9)
    assert out.nfe.tolist() == [5] * 3


def test_the_step_over_the_last_level_noises_the_clean_estimate():
    d, levels = constant(VP()), VP().grid(2)
    seen = []
    fl.sample(d, n=2, levels=levels, sampler="overshoot", dtype=DOUBLE, callback=seen.append)
    run = fl.Run(0, range(2), 2)
    run.advance()
    fresh = run.normal(torch.empty(2, 2, dtype=DOUBLE), "sampler", 1)
    assert_close(seen[0].x, levels[1].alpha * 0.7 + levels[1].sigma * fresh)


def test_one_step_is_ddim():
    p = GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1])
    out = [
        fl.sample(p.denoiser(VP()), {"label": [0, 1]}, guide="cfgpp(0.6)", sampler=s, steps=1).x
        for s in ("overshoot", "ddim")
    ]
    assert torch.equal(*out)
