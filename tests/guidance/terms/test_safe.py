"""Safe latent diffusion: by hand with momentum and warm-up, where it does not act, the errors."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Run
from fairlead.testing import tiny_denoiser

SCHEDULE = fl.schedules.EDM()
PLACE = {"t": 2.0, "schedule": SCHEDULE}
X = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64)


def clean(eps):
    return X - 2.0 * torch.tensor([eps], dtype=torch.float64)


def noise(d):
    return (X - d) / 2.0


V = {
    "cond": clean([0.0, 1.0, 0.0]),
    "null": clean([1.0, 0.0, -1.0]),
    "safety": clean([0.5, 0.0, 0.0004]),
}


def step(guide, run=None):
    return noise(fl.combine(guide, V, x=X, run=run, **PLACE))


def test_by_hand():
    # c - s = -0.5, 1, -0.0004: near, at or above the threshold, near by 0.4 of a unit
    # mu = 1, 0, 0.4; s - u = -0.5, 0, 1.0004; gamma = mu (s - u)
    gamma = torch.tensor([[-0.5, 0.0, 0.4 * 1.0004]], dtype=torch.float64)
    plain = step(fl.CFG(3.0))
    assert_close(step(fl.CFG(3.0) + fl.Safe(3.0, warmup=0)), plain - 3 * gamma)


def test_momentum_gathers_while_it_waits():
    run = Run(check=False)
    guide = fl.CFG(3.0) + fl.Safe(3.0, warmup=1)
    plain = step(fl.CFG(3.0))
    gamma = torch.tensor([[-0.5, 0.0, 0.4 * 1.0004]], dtype=torch.float64)
    assert_close(step(guide, run), plain)
    assert_close(step(guide, run), plain - 3 * (gamma + 0.3 * 0.6 * gamma))


def test_far_above_the_concept_nothing_is_pushed():
    v = {**V, "cond": clean([5.0, 5.0, 5.0])}
    out = fl.combine(fl.CFG(3.0) + fl.Safe(3.0, warmup=0), v, x=X, **PLACE)
    assert_close(out, fl.combine(fl.CFG(3.0), v, x=X, **PLACE))


def test_weight_zero_costs_nothing():
    out = fl.combine("cfg(3) + safe(0)", {k: V[k] for k in ("cond", "null")}, x=X, **PLACE)
    assert torch.equal(out, fl.combine("cfg(3)", V, x=X, **PLACE))


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"safe: beta must be in \[0, 1\), got 1.0"):
        fl.Safe(3.0, beta=1.0)
    with pytest.raises(ValueError, match=r"safe: k must be in"):
        fl.Safe(3.0, k=-1.0)
    with pytest.raises(ValueError, match="'safety'"):
        fl.sample(tiny_denoiser(), {"label": [1]}, guide="safe(2)")
