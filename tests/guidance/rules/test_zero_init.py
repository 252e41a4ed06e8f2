"""Zero-init: the state does not move in the first steps, with and without guidance."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import combine

FLOW = fl.schedules.RectifiedFlow()
C, U = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]])


def states(guide, sampler="euler"):
    mixture = fl.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5, labels=[0, 1])
    seen = []
    out = fl.sample(
        mixture.denoiser(FLOW), {"label": torch.tensor([0, 1, 0])}, guide=guide, sampler=sampler,
        steps=5, dtype=torch.float64, callback=lambda step: seen.append(step.x.clone()),
    )  # fmt: skip
    return seen, out


@pytest.mark.parametrize("guide", ["none", "cfg(1)", "cfg(3)"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_state_stands_still_and_then_moves(guide, sampler):
    seen, out = states(f"{guide} | zero_init(2)", sampler)
    assert_close(seen[0], seen[1], rtol=1e-12, atol=1e-12)
    assert (seen[1] - seen[2]).abs().max() > 1e-2
    assert out.nfe.tolist() == states(guide, sampler)[1].nfe.tolist()


def test_no_step_is_neutral_to_the_bit():
    for guide in ("none", "cfg(3)"):
        assert torch.equal(states(f"{guide} | zero_init(0)")[1].x, states(guide)[1].x)


def test_it_is_the_zero_of_cfg_zero_star():
    at = {"x": torch.tensor([[3.0, -1.0]]), "t": FLOW.level(0.75)}
    both = [
        combine(f"cfg(3) | {rule}", C, U, fl.Run(steps=4), **at)
        for rule in ("zero_init(1)", "zero_star(1)")
    ]
    assert_close(*both)
    late = [combine(f"cfg(3) | {rule}", C, U, **at) for rule in
            ("zero_star(0) | zero_init(0)", "zero_star(0)")]  # fmt: skip
    assert torch.equal(*late)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"zero_init: steps must be in \[0, inf\), got -1"):
        fl.ZeroInit(-1)
    with pytest.raises(ValueError, match="give x, t"):
        combine("cfg(3) | zero_init(1)", C, U)
