"""Oscillating guidance: the scale at each step by hand, its cost, and the solver's history."""

import pytest
import torch

import fairlead as fl
from fairlead.testing import tiny_denoiser

C, U = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [0.0]])
LABEL = {"label": [3, 5]}


def scales(guide, steps):
    run = fl.Run(steps=steps, check=False)
    return [fl.combine(guide, {"cond": C, "null": U}, run=run)[:, 0].tolist() for _ in range(steps)]


def test_the_scale_by_hand():
    # steps 0 and 1 of 20 are held; then low on even steps
    found = [row[0] for row in scales("cfg(15) | oscillating()", 20)]
    assert found == [15.0, 15.0] + [1.0, 15.0] * 9
    found = [row[0] for row in scales("cfg(15) | oscillating(low=2, hold=0)", 4)]
    assert found == [2.0, 15.0, 2.0, 15.0]


def test_samples_without_guidance_stay_so():
    assert scales("cfg([15.0, 1.0]) | oscillating(low=3, hold=0)", 2) == [[3.0, 1.0], [15.0, 1.0]]


def test_low_equal_to_high_is_constant():
    options = {"steps": 5, "sampler": "ddim"}
    a, b = (
        fl.sample(tiny_denoiser(), LABEL, guide=g, **options).x
        for g in ("cfg(3)", "cfg(3) | oscillating(low=3.0)")
    )
    assert torch.equal(a, b)


def test_low_steps_cost_one_evaluation():
    out = fl.sample(
        tiny_denoiser(), LABEL, guide="cfg(3) | oscillating(hold=0)", steps=6, sampler="ddim"
    )
    assert out.nfe.tolist() == [9, 9]


def test_restart_makes_a_multistep_solver_take_first_order_steps():
    guides = "cfg(3) | oscillating(hold=0, restart=True)", "cfg(3) | oscillating(hold=0)"
    multi, kept = (
        fl.sample(tiny_denoiser(), LABEL, guide=g, steps=6, sampler="dpmpp_2m").x for g in guides
    )
    first = fl.sample(tiny_denoiser(), LABEL, guide=guides[0], steps=6, sampler="dpmpp_1s").x
    torch.testing.assert_close(multi, first, rtol=1e-4, atol=1e-4)  # float32 in another order
    assert not torch.allclose(kept, first, atol=1e-2)


@pytest.mark.parametrize(("steps", "hold", "changes"), [(10, 0.2, [2, 3, 4, 5]), (10, 0.3, [4, 5])])
def test_history_is_dropped_where_the_scale_changes(steps, hold, changes):
    guide = fl.CFG(3.0) | fl.Oscillating(hold=hold, restart=True)
    run, dropped = fl.Run(steps=steps, check=False), []
    for step in range(6):
        run.memory["solver"] = step
        fl.combine(guide, {"cond": C, "null": U}, run=run)
        if not run.memory:
            dropped.append(step)
    assert dropped == changes


def test_bad_value_is_named():
    with pytest.raises(ValueError, match=r"oscillating: hold must be in \[0, 1\], got 2"):
        fl.Oscillating(hold=2.0)
