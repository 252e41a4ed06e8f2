"""Sampling in stages: equality with ordinary runs, the two recipes by hand, refusals."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import fairlead as fl
from fairlead.schedules import EDM, VP, DiscreteVP, RectifiedFlow
from fairlead.stages import frecas, linear, nearest, rectified_hr
from fairlead.testing import tiny_denoiser

GRID = tuple(EDM().grid(6))
LABEL = {"label": [3, 5]}


def staged(stages, denoiser=None, **options):
    options = {"n": 2, **options}
    return fl.sample_stages(denoiser or tiny_denoiser(), LABEL, stages=stages, **options)


def trace(run, **options):
    """The states after each step."""
    seen = []
    run(callback=lambda step: seen.append(step.x), **options)
    return seen


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("guide", ["cfg(3)", "cfg(3) | apg(beta=-0.5)", "cfg(3) | ramp(0, 2)"])
def test_stages_of_one_size_without_refresh_are_one_run(sampler, guide):
    stages = [
        fl.Stage(guide, GRID[:3]),
        fl.Stage(guide, GRID[2:5], refresh=False),
        fl.Stage(guide, GRID[4:], refresh=False),
    ]
    whole = fl.sample(tiny_denoiser(), LABEL, guide=guide, sampler=sampler, steps=6, n=2)
    parts = staged(stages, sampler=sampler)
    assert torch.equal(parts.x, whole.x)
    assert torch.equal(parts.nfe, whole.nfe)
    assert len(parts.report.entries) == len(whole.report.entries)


def test_first_stage_is_the_beginning_of_an_ordinary_run_to_the_bit():
    stages = [fl.Stage("cfg(3)", GRID[:4]), fl.Stage("cfg(6)", GRID[3:], (16, 12))]
    ours = trace(lambda **o: staged(stages, **o))
    plain = trace(lambda **o: fl.sample(tiny_denoiser(), LABEL, n=2, steps=6, sampler="ddim", **o))
    guided = trace(
        lambda **o: fl.sample(
            tiny_denoiser(), LABEL, n=2, steps=6, sampler="ddim", guide="cfg(3)", **o
        )
    )
    for mine, theirs in zip(ours[:3], guided, strict=False):
        assert torch.equal(mine, theirs)
    assert not torch.equal(ours[0], plain[0])
    assert ours[-1].shape == (2, 2, 16, 12)
    assert len(ours) == 6


class Recorder:
    """Predicts a constant and keeps what it was given."""

    def __init__(self, value):
        self.value, self.seen = value, []

    def __call__(self, x, t, label):
        self.seen.append(x)
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("schedule", [EDM(), VP(), RectifiedFlow()])
def test_refresh_noises_the_clean_estimate_to_the_next_level(schedule):
    network = Recorder(2.0)
    d = fl.Denoiser(network, schedule, "sample", null={"label": -1}, shape=(1, 8, 8))
    grid = tuple(schedule.grid(4))
    staged([fl.Stage("none", grid[:3]), fl.Stage("none", grid[2:], (64, 64))], d)
    first = network.seen[2]
    assert first.shape == (2, 1, 64, 64)
    level = grid[2]
    # 8192 numbers: three standard errors of mean and deviation
    assert first.mean().item() == pytest.approx(2 * level.alpha, abs=0.034 * level.sigma)
    assert first.std().item() == pytest.approx(level.sigma, rel=0.024)


def test_clean_estimate_goes_through_resize():
    sizes = []

    def twice(x, size):
        sizes.append((tuple(x.shape), size))
        return nearest(x, size).clamp(-1, 1)

    stages = [fl.Stage("cfg(2)", GRID[:3], (4, 4)), fl.Stage("cfg(2)", GRID[2:], (8, 8))]
    staged(stages, resize=twice)
    assert sizes == [((2, 2, 4, 4), (8, 8))]


def test_memory_of_one_size_is_dropped_before_the_next():
    guide = "cfg(3) | apg(beta=-0.5)"
    stages = [fl.Stage(guide, GRID[:4]), fl.Stage(guide, GRID[3:], (16, 16))]
    assert staged(stages, sampler="dpmpp_2m").x.shape == (2, 2, 16, 16)


def test_samples_do_not_depend_on_the_batch():
    stages = [fl.Stage("cfg(3)", GRID[:3]), fl.Stage("cfg(5)", GRID[2:], (16, 16))]
    both = staged(stages, tiny_denoiser(dtype=torch.float64), dtype=torch.float64)
    one = fl.sample_stages(
        tiny_denoiser(dtype=torch.float64),
        {"label": [5]},
        stages=stages,
        n=1,
        first=1,
        dtype=torch.float64,
    )
    assert_close(both.x[1:], one.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(12, 20), (16, 8), (5, 7)])
def test_resizing_is_torchs(size):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(linear(x, size), F.interpolate(x, size, mode="bilinear", align_corners=False))
    assert torch.equal(nearest(x, size), F.interpolate(x, size, mode="nearest"))


class TestRectifiedHR:
    def test_two_stages_by_hand(self):
        made = rectified_hr(VP(), ((64, 64), (128, 128)))
        assert [str(s.guide) for s in made] == ["cfg(5.0)", "cfg(30.0)"]
        assert [s.size for s in made] == [(64, 64), (128, 128)]
        assert made[0].levels + made[1].levels[1:] == tuple(VP().grid(50))
        assert len(made[0].levels) == 31

    def test_three_stages_by_hand(self):
        made = rectified_hr(
            VP(),
            ((60, 64), (128, 256)),
            w=(5, 50),
            stages=3,
            refresh=40,
            w_power=0.5,
            refresh_power=0.5,
        )
        assert [len(s.levels) - 1 for s in made] == [40, 7, 3]  # 40, 47, 50
        assert [s.size for s in made] == [(64, 64), (96, 160), (128, 256)]
        assert [s.guide.w for s in made] == pytest.approx([5, 5 + 45 * math.sqrt(0.5), 50])

    def test_equal_ends_are_cfg(self):
        stages = rectified_hr(EDM(), ((8, 8), (8, 8)), w=(3, 3), steps=6, refresh=4)
        plain = [fl.Stage(s.guide, s.levels, s.size, refresh=False) for s in stages]
        whole = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3)", sampler="ddim", steps=6, n=2)
        assert torch.equal(staged(plain).x, whole.x)

    def test_refusals(self):
        with pytest.raises(ValueError, match="stages must be at least 2, got 1"):
            rectified_hr(VP(), ((8, 8), (16, 16)), stages=1)
        with pytest.raises(ValueError, match=r"needs a step, but they end at \[50, 50\]"):
            rectified_hr(VP(), ((8, 8), (16, 16)), refresh=50)


class TestFreCaS:
    @pytest.mark.parametrize("gamma", [1.0, 1.5, 3.0])
    def test_start_multiplies_the_signal_to_noise_ratio(self, gamma):
        vp = DiscreteVP.scaled_linear()
        first, second = frecas(vp, [(32, 32), (64, 64)], (4, 3), (200, 0), gamma=gamma)
        end, start = first.levels[-1], second.levels[0]
        assert end.t == 200
        ratio = (start.alpha / start.sigma) ** 2 / (end.alpha / end.sigma) ** 2
        assert ratio == pytest.approx(0.5**gamma, rel=1e-3)  # betas are interpolated
        abar, q = end.alpha**2, 0.5**gamma
        assert start.alpha**2 == pytest.approx(q * abar / (1 + (q - 1) * abar), rel=1e-3)
        assert [len(s.levels) for s in (first, second)] == [5, 4]
        assert second.levels[-1].sigma == 0

    def test_flow_start_is_the_papers_shift(self):
        stages = frecas(RectifiedFlow(), [(16, 16), (64, 64)], (4, 3), (0.2, 0), gamma=1)
        m = 2.0  # sqrt(64/16)
        assert stages[1].levels[0].t == pytest.approx(m * 0.2 / (1 + (m - 1) * 0.2))

    def test_guides(self):
        vp = DiscreteVP.scaled_linear()
        first, second = frecas(vp, [(32, 32), (48, 48)], (4, 3), (200, 0), w=3, high=9)
        assert str(first.guide) == "cfg(3.0)"
        assert second.guide == fl.CFG(3.0) | fl.Bands(4.0, ratio=2 / 3)
        same = frecas(vp, [(32, 32), (48, 48)], (4, 3), (200, 0), w=3, high=3)
        assert same[1].guide == fl.CFG(3.0)

    def test_runs(self):
        stages = frecas(EDM(), [(8, 8), (16, 16)], (3, 2), (0.5, 0), w=2, high=4)
        out = staged(stages, resize=nearest)
        assert out.x.shape == (2, 2, 16, 16)
        assert out.nfe.tolist() == [10, 10]

    def test_refusals(self):
        with pytest.raises(ValueError, match="must be as many as stages, got 2, 1 and 2"):
            frecas(VP(), [(8, 8), (16, 16)], (3,), (0.2, 0))
        with pytest.raises(ValueError, match="w must not be 1 where high is not"):
            frecas(VP(), [(8, 8), (16, 16)], (3, 2), (0.2, 0), w=1)


def test_refusals():
    stage = fl.Stage("cfg(2)", GRID[:3])
    with pytest.raises(ValueError, match="stages must name at least one stage"):
        staged([])
    with pytest.raises(ValueError, match="stage 1: levels must be at least two"):
        staged([stage, fl.Stage("none", GRID[2:3])])
    with pytest.raises(ValueError, match=r"stage 1: levels .* each less noisy .* got t = 0, "):
        staged([stage, fl.Stage("none", GRID[::-1])])
    with pytest.raises(ValueError, match=r"size of stage 1 must be 2 numbers .* got \(16,\)"):
        staged([stage, fl.Stage("none", GRID[2:], (16,))])
    with pytest.raises(ValueError, match=r"stage 1 changes the size .* needs refresh=True"):
        staged([stage, fl.Stage("none", GRID[2:], (16, 16), refresh=False)])
    with pytest.raises(ValueError, match="unknown name 'cgf'"):
        staged([stage, fl.Stage("cgf(2)", GRID[2:])])
    network = Recorder(0.0)
    d = fl.Denoiser(network, EDM(), "sample", null={"label": -1}, shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"asks for a model 'weak'"):
        staged([stage, fl.Stage("autoguidance(2)", GRID[2:])], d)
    assert not network.seen  # refused before the first step


def test_levels_of_a_plain_run():
    grid = EDM().grid(6)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"guide": "cfg(2)", "sampler": "ddim", "x": x}
    given = fl.sample(tiny_denoiser(), LABEL, levels=grid, **options)
    assert torch.equal(given.x, fl.sample(tiny_denoiser(), LABEL, steps=6, **options).x)
    half = fl.sample(tiny_denoiser(), LABEL, levels=grid[3:], **options)
    assert half.nfe.tolist() == [6, 6]
    with pytest.raises(ValueError, match=r"sample: levels must be at least two"):
        fl.sample(tiny_denoiser(), LABEL, levels=grid[:1], **options)


def test_a_guide_sees_where_each_step_ends():
    seen = []

    @dataclass(frozen=True)
    class Spy(fl.Rule):
        def apply(self, update, predictions, ctx):
            seen.append(ctx.target.t)
            return update

    guide = fl.CFG(2.0) | Spy()
    staged([fl.Stage(guide, GRID[:4]), fl.Stage(guide, GRID[2:], (16, 16))])
    assert seen == [level.t for level in (*GRID[1:4], *GRID[3:])]
