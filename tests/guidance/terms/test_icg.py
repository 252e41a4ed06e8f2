"""ICG: the draw, its statistics, and the limits in which it is CFG or nothing."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.terms.icg import Independent
from fairlead.testing import tiny_denoiser

OPTIONS = {"steps": 3, "sampler": "heun", "dtype": torch.float64}


def double(**attributes):
    d = tiny_denoiser(dtype=torch.float64)
    for name, value in attributes.items():
        setattr(d, name, value)
    return d


def drawn(run, labels, draw="index", denoiser=None):
    ctx = SimpleNamespace(run=run, normal=lambda like, key: run.normal(like, key))
    condition = fl.Condition({"label": labels})
    return Independent(draw)(condition, denoiser or tiny_denoiser(), ctx)["label"]


def test_by_hand():
    c, r = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert torch.equal(fl.combine("icg(3)", {"cond": c, "icg": r}), torch.tensor([[3.0, -4.0]]))


def test_a_draw_of_the_condition_itself_contributes_nothing():
    d = double(choices={"label": 1})
    out = fl.sample(d, {"label": [0, 0]}, guide="icg(5)", **OPTIONS)
    assert_close(out.x, fl.sample(d, {"label": [0, 0]}, **OPTIONS).x, rtol=1e-10, atol=1e-10)


def test_a_draw_of_the_null_embedding_is_cfg():
    d = double(choices={"label": 1}, null={"label": 0})
    d.check = lambda condition: None  # the labels below are none of the drawn ones
    icg = fl.sample(d, {"label": [4, 7]}, guide="icg(3)", **OPTIONS)
    assert_close(icg.x, fl.sample(d, {"label": [4, 7]}, guide="cfg(3)", **OPTIONS).x)


def test_draws_are_uniform_and_independent_of_the_condition():
    draws = []
    for step in range(5):
        run = fl.Run(1, range(1000), 5)
        run.step = step
        draws.append(drawn(run, torch.full((1000,), 3)))
    counts = torch.bincount(torch.cat(draws), minlength=10).double()
    # 5000 draws into 10 boxes: chi square with 9 degrees of freedom, below 27.9 in 99.9 %
    assert ((counts - 500) ** 2 / 500).sum() < 27.9
    assert not torch.equal(draws[0], draws[1])


def test_draw_is_a_function_of_seed_sample_and_step():
    a = drawn(fl.Run(1, range(4)), torch.zeros(4, dtype=torch.long))
    b = drawn(fl.Run(1, range(2, 4)), torch.zeros(2, dtype=torch.long))
    assert torch.equal(a[2:], b)


def test_stages_of_a_step_see_one_draw():
    d, seen = tiny_denoiser(), []

    def look(_, args, kwargs):
        seen.append(kwargs["label"][2:])

    d.network.register_forward_pre_hook(look, with_kwargs=True)
    fl.sample(d, {"label": [3, 5]}, guide="icg(3)", steps=6, seed=3)
    for first, second in zip(seen[:-1:2], seen[1::2], strict=True):  # Heun's two stages
        assert torch.equal(first, second)
    assert len({tuple(s.tolist()) for s in seen}) > 1


def test_gaussian_matches_the_embedding_in_mean_and_deviation():
    embedding = torch.randn(3, 20000) * torch.tensor([[1.0], [2.0], [0.1]]) + 4
    made = drawn(fl.Run(0, range(3)), embedding, "gaussian")
    # of 20000 draws the mean is off by 1/sqrt(20000) = 0.007 deviations; five of those
    assert_close(made.mean(1), embedding.mean(1), rtol=0, atol=0.035 * 2)
    assert_close(made.std(1), embedding.std(1), rtol=0.03, atol=0)
    assert not torch.allclose(made, embedding, atol=0.5)


def test_unknown_number_of_values_is_named():
    d = tiny_denoiser()
    d.choices = {}
    with pytest.raises(ValueError, match=r"icg: the number of values of 'label'.*choices="):
        fl.sample(d, {"label": [3]}, guide="icg(3)", steps=2)


def test_unknown_draw_is_named():
    with pytest.raises(ValueError, match="icg: draw must be one of index, gaussian"):
        fl.ICG(2.0, draw="normal")
