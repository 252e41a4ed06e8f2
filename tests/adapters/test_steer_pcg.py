"""Predictor-corrector guidance at a pipeline's scheduler."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from tests.adapters.steered import close, steered

import fairlead as fl
from fairlead.adapters.diffusers.levels import Levels


@contextmanager
def ddim(pipe):
    """The pipeline under DDIM that ends without noise."""
    from diffusers import DDIMScheduler

    old = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(old.config, clip_sample=False, set_alpha_to_one=True)
    try:
        yield pipe.scheduler
    finally:
        pipe.scheduler = old


@pytest.mark.parametrize("sampler", ["pcg", "pcg(langevin=2, gain=1.5)", "pcg(langevin=0)"])
@pytest.mark.parametrize("guide", ["cfg(4)", "cfg(4) | apg(eta=0)"])
def test_a_pipeline_walks_as_fl_sample_does(tiny, sampler, guide):
    """The same network, levels, noise and draws, without a pipeline."""
    pipe, recipe = tiny("sd")
    with ddim(pipe) as scheduler:
        ours, s = steered(pipe, recipe, guide, {"sampler": sampler, "seed": 3})
        given = recipe.arguments
        text, null = pipe.encode_prompt(
            given["prompt"], "cpu", 1, True, given.get("negative_prompt")
        )
        at = Levels(scheduler)
        levels = [at.at(t).level for t in scheduler.timesteps]
        levels.append(at.following(scheduler.timesteps[-1]).level)
        assert levels[-1].sigma == 0
        denoiser = fl.Denoiser(
            lambda x, t, text: pipe.unet(x, t, text)[0],
            fl.schedules.DiscreteVP(scheduler.betas),
            null={"text": null[0]},
        )
        noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
        expected = fl.sample(
            denoiser,
            {"text": text},
            guide=guide,
            sampler=sampler,
            levels=levels,
            x=noise,
            seed=3,
        )
    k = fl.samplers.get(sampler).langevin
    assert s.report.nfe == 3 + 2 * 2 * k
    close(ours, expected.x)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart_alpha", "ltx"])
def test_no_langevin_steps_are_the_conditional_pipeline(tiny, name):
    pipe, recipe = tiny(name)
    plain, _ = steered(pipe, recipe, "cfg(1)")
    none, s = steered(pipe, recipe, "cfg(4)", {"sampler": "pcg(langevin=0)"})
    steps = s.report.nfe
    assert steps == len(s.report.entries)
    close(none, plain)
    moved, s = steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"})
    assert s.report.nfe == steps + 2 * (steps - 1)
    assert (moved - plain).abs().max() > 1e-3
    assert torch.equal(moved, steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"})[0])


def test_a_correction_is_told_to_the_scheduler(tiny, tape):
    """By hand on a straight path: the step starts where the Langevin step ended."""
    pipe, recipe = tiny("sd3")
    with tape(pipe, recipe.networks) as seen:
        _, s = steered(pipe, recipe, "cfg(4)", {"sampler": "pcg(gain=1.0)"})
    assert s.report.nfe == 7
    sigmas = [float(v) for v in pipe.scheduler.sigmas]
    before = seen.steps[0][3][0].double()
    null, cond = seen.outputs[1].double().chunk(2)
    s0, s1 = sigmas[:2]
    x0 = before - s1 * (null + 4 * (cond - null))
    q = min(s0**2 - ((1 - s0) / (1 - s1) * s1) ** 2, s1**2)
    run = fl.guidance.context.Run(0, range(1), 3)
    run.advance()
    noise = run.normal(before.float(), "sampler", 1).double()
    expected = before + q / 2 * ((1 - s1) * x0 - before) / s1**2 + q**0.5 * noise
    close(seen.steps[1][2][0].double(), expected, 1e-5)


def test_what_cannot_be_corrected_is_refused(tiny):
    pipe, recipe = tiny("wan")
    with pytest.raises(ValueError, match="has a UniPCMultistepScheduler; take one of DDIM"):
        steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"})
    with pytest.raises(ValueError, match=r"sampler must be pcg\(...\).* got heun"):
        fl.steer(pipe, "cfg(4)", sampler="heun")
    pipe, recipe = tiny("sd_controlnet")
    with ddim(pipe), pytest.raises(ValueError, match="leave out the sampler, or the ControlNet"):
        steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"})


def test_steps_that_add_noise_are_refused(tiny):
    """A corrector follows a conditional DDIM step; noise of the scheduler would count twice."""
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    pipe, recipe = tiny("sd")
    with ddim(pipe), pytest.raises(ValueError, match=r"pcg corrects .*eta=0.5 makes them noisy"):
        steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"}, eta=0.5)
    with ddim(pipe):
        steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"}, eta=0.0)
    old = pipe.scheduler
    pipe.scheduler = EulerDiscreteScheduler.from_config(old.config)
    try:
        steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"})
        pipe.scheduler.step = partial(pipe.scheduler.step, s_churn=2.0)
        with pytest.raises(ValueError, match=r"s_churn=2.0 makes them noisy; leave out s_churn"):
            steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"})
        with pytest.raises(ValueError, match="moves the step's noise level"):
            steered(pipe, recipe, "cfgpp(0.6)")
    finally:
        pipe.scheduler = old
    pipe, recipe = tiny("sd3")
    old = pipe.scheduler
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        old.config, stochastic_sampling=True
    )
    try:
        with pytest.raises(ValueError, match="stochastic_sampling=True; set it to False"):
            steered(pipe, recipe, "cfg(4)", {"sampler": "pcg"})
    finally:
        pipe.scheduler = old
