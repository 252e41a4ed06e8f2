"""TSG: the noise on the time embedding, exactly, in a network that is linear in it."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Context
from fairlead.guidance.terms.tsg import TimeNoise
from fairlead.testing import tiny_denoiser

FLOW = fl.schedules.RectifiedFlow()


class Clock(nn.Module):
    """Predicts three times its time; an unconditional model."""

    def __init__(self):
        super().__init__()
        self.time = nn.Identity()

    def forward(self, x, t):
        return 3 * self.time(t[:, None]).expand_as(x)


def clock():
    return fl.Denoiser(Clock(), FLOW, "sample", time_embedding="time", shape=(1,))


@pytest.mark.parametrize(("w", "s"), [(1.0, 0.5), (3.0, 0.0), (3.0, 0.5), (-1.0, 2.0)])
def test_first_order_is_exact_where_the_model_is_linear(w, s):
    # D~ = D + 3 s n, so D + (w - 1)(D - D~) = D - 3 (w - 1) s n; t = 1 at the first step
    out = fl.sample(clock(), guide=fl.TSG(w, s=s), n=4, steps=1, sampler="ddim", seed=5)
    run = fl.Run(5, range(4))
    run.step = 0
    n = run.normal(torch.empty(4, 1), "tsg")
    assert_close(out.x, 3 - 3 * (w - 1) * s * n)


def test_size_follows_the_share_ahead():
    out = torch.zeros(2, 50000)
    for step, size in [(0, 0.5), (2, 0.5 * 0.5**2), (3, 0.5 * 0.25**2)]:
        run = fl.Run(0, range(2), steps=4)
        run.step = step
        moved = TimeNoise(0.5, 2.0)((), out, range(2), Context(out, None, run))
        # a deviation measured on 50000 draws is off by 1/sqrt(100000) = 0.3 %; five of those
        assert_close(moved.std(1), torch.full((2,), size), rtol=0.016, atol=0)


def test_zero_noise_costs_nothing():
    out = fl.sample(tiny_denoiser(), {"label": [1]}, guide="tsg(4, s=0)", steps=2)
    assert out.nfe.tolist() == [3]


def test_only_the_perturbed_rows_see_the_noise():
    d, label = tiny_denoiser(dtype=torch.float64), {"label": [3, 5]}
    seen = []
    d.network.register_forward_hook(lambda _, a, out: seen.append(out.clone()))
    fl.sample(d, label, guide="tsg(2)", steps=1, sampler="ddim", dtype=torch.float64)
    fl.sample(d, label, steps=1, sampler="ddim", dtype=torch.float64)
    both, plain = seen
    assert_close(both[:2], plain, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(both[2:], plain, atol=1e-3)


def test_model_without_a_named_time_embedding():
    d = tiny_denoiser()
    d.time_embedding = None
    with pytest.raises(ValueError, match="tsg: the model does not say which module embeds time"):
        fl.sample(d, {"label": [1]}, guide="tsg(2)", steps=2)
    d.time_embedding = "tiem"
    with pytest.raises(ValueError, match=r"no module 'tiem'.*'time'"):
        fl.sample(d, {"label": [1]}, guide="tsg(2)", steps=2)
