"""SINE: the paper's formula, and its limits."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import tiny_denoiser

weights = st.floats(-2, 12)


def predictions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    c, n, f = (torch.randn(2, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    return c, n, f, {"cond": c, "null": n, "tuned": f}


@given(weights, weights)
def test_the_formula_of_the_paper(w, v):
    c, n, f, values = predictions()
    out = fl.combine(f"cfg({w}) + sine({w}, v={v})", values)
    assert_close(out, n + w * (v * c + (1 - v) * f - n))


def test_several_guides():
    c, n, f, values = predictions()
    g = f.flip(0)
    out = fl.combine(
        "cfg(7.5) + sine(7.5, v=0.8) + sine(7.5, v=0.7, model='second')", {**values, "second": g}
    )
    assert_close(out, n + 7.5 * (0.5 * c + 0.2 * f + 0.3 * g - n))


@given(weights)
def test_a_tuned_model_equal_to_its_origin_is_cfg(w):
    c, _, _, values = predictions()
    values["tuned"] = c
    assert_close(fl.combine(f"cfg({w}) + sine({w})", values), fl.combine(f"cfg({w})", values))


def test_outside_its_interval_the_tuned_model_costs_nothing():
    tiny = tiny_denoiser()
    tiny.models = {"tuned": tiny.models["weak"]}
    guide = "cfg(7.5) + (sine(7.5) | interval(0, 0.6))"
    out = fl.sample(tiny, {"label": [1]}, guide=guide, steps=10, sampler="ddim")
    assert out.nfe.tolist() == [2 * 10 + 6]
