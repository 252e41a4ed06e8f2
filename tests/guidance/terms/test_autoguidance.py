"""Autoguidance: limits in which it is nothing or CFG, and how it cancels a shared error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import pairs, tiny_denoiser

scales = st.floats(-2, 20)
OPTIONS = {"dtype": torch.float64, "steps": 3}
LABEL = {"label": [3, 5]}


@given(pairs(), scales, st.floats(-3, 3))
def test_shared_error_is_cancelled(cg, w, k):
    d, g = cg
    out = fl.combine(fl.Autoguidance(w), {"cond": d, "weak": d + k * g})
    assert_close(out, d + (1 - w) * k * g, rtol=0, atol=1e-10)


@given(pairs(), scales, st.floats(0, 1))
def test_shares_of_one_extrapolation(cu, w, a):
    c, u = cu
    split = fl.CFG(1 + (1 - a) * (w - 1)) + fl.Autoguidance(1 + a * (w - 1))
    out = fl.combine(split, {"cond": c, "null": u, "weak": u})
    assert_close(out, fl.combine(fl.CFG(w), {"cond": c, "null": u}), rtol=0, atol=1e-10)


def test_equal_models_give_the_model():
    d = tiny_denoiser(dtype=torch.float64)
    out = fl.sample(d, LABEL, guide="autoguidance(3)", models={"weak": d}, **OPTIONS)
    assert_close(out.x, fl.sample(d, LABEL, **OPTIONS).x, rtol=1e-10, atol=1e-10)


def test_a_weak_model_that_ignores_the_condition_is_cfg():
    d = tiny_denoiser(dtype=torch.float64)

    def blind(x, t, label):
        return d.network(x, t, torch.full_like(label, 10))

    weak = fl.Denoiser(blind, d.schedule, "sample")
    out = fl.sample(d, LABEL, guide="autoguidance(3)", models={"weak": weak}, **OPTIONS)
    cfg = fl.sample(d, LABEL, guide="cfg(3)", **OPTIONS)
    assert_close(out.x, cfg.x, rtol=1e-9, atol=1e-9)


def test_both_networks_run_once_an_evaluation():
    d = tiny_denoiser()
    out = fl.sample(d, LABEL, guide="autoguidance(2)", steps=3)
    assert out.nfe.tolist() == [10, 10]
    assert (d.network.calls, d.models["weak"].network.calls) == (5, 5)


def test_missing_model_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"asks for a model 'weka'.*did you mean 'weak'"):
        fl.sample(tiny_denoiser(), LABEL, guide="autoguidance(2, model='weka')", steps=2)
