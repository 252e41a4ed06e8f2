"""Signal and noise read from every kind of scheduler, and predictions made from them."""

import math

import pytest
import torch
from torch.testing import assert_close

diffusers = pytest.importorskip("diffusers")

from fairlead.adapters.diffusers.levels import Levels  # noqa: E402

VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SOUND = {"sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0}

# class, options, and whether it is a first-order step without noise
CASES = [
    ("DDIMScheduler", {**VP, "clip_sample": False}, True),
    ("DDIMScheduler", {**VP, "clip_sample": False, "prediction_type": "v_prediction"}, True),
    ("DDIMScheduler", {**VP, "clip_sample": False, "prediction_type": "sample"}, True),
    ("DDPMScheduler", {**VP, "clip_sample": False}, False),
    ("PNDMScheduler", {**VP, "skip_prk_steps": True, "set_alpha_to_one": True}, True),
    ("LCMScheduler", {**VP, "original_inference_steps": 50}, False),
    ("TCDScheduler", {**VP, "original_inference_steps": 50}, False),
    ("CogVideoXDDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, True),
    ("EulerDiscreteScheduler", VP, True),
    ("EulerDiscreteScheduler", {**VP, "prediction_type": "v_prediction"}, True),
    ("EulerDiscreteScheduler", {**VP, "use_karras_sigmas": True}, True),
    ("EulerAncestralDiscreteScheduler", VP, False),
    ("HeunDiscreteScheduler", VP, True),
    ("LMSDiscreteScheduler", VP, True),
    ("KDPM2DiscreteScheduler", VP, True),
    ("KDPM2AncestralDiscreteScheduler", VP, False),
    ("DPMSolverMultistepScheduler", {**VP, "final_sigmas_type": "zero"}, True),
    (
        "DPMSolverMultistepScheduler",
        {**VP, "final_sigmas_type": "zero", "use_karras_sigmas": True},
        True,
    ),
    (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        True,
    ),
    ("DPMSolverSinglestepScheduler", {**VP, "final_sigmas_type": "zero"}, True),
    ("UniPCMultistepScheduler", {**VP, "final_sigmas_type": "zero"}, True),
    (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        True,
    ),
    ("DEISMultistepScheduler", {**VP}, True),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, True),
    ("FlowMatchHeunDiscreteScheduler", {}, True),
    ("EDMEulerScheduler", {"sigma_data": 0.5}, True),
    ("EDMEulerScheduler", {"sigma_data": 0.5, "prediction_type": "v_prediction"}, True),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5}, True),
    ("CosineDPMSolverMultistepScheduler", SOUND, False),
]


def names(case):
    name, options, _ = case
    kind = options.get("prediction_type", "")
    return f"{name}-{kind}" if kind else name


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers in NumPy
@pytest.mark.parametrize("case", CASES, ids=names)
def test_a_network_that_knows_the_data_leads_every_scheduler_to_it(case):
    """All data is one point `d`: what predicts `d` at the level that was read must end there.

    The noise in between is the same at every step of a deterministic solver, so that a wrong
    signal or noise level, sign or kind of prediction shows at once.
    """
    name, options, steady = case
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(8)
    levels = Levels(scheduler)
    g = torch.Generator().manual_seed(3)
    point = torch.randn(2, 4, 4, 4, generator=g)
    start = getattr(scheduler, "init_noise_sigma", 1.0)
    latents = start * torch.randn(2, 4, 4, 4, generator=g)
    seen = []
    for t in scheduler.timesteps:
        given = latents
        if hasattr(scheduler, "scale_model_input"):
            given = scheduler.scale_model_input(latents, t)
        scale = levels.at(t)
        x, level = given * scale.factor, scale.level
        assert_close(x * scale.latents, latents, rtol=1e-5, atol=1e-5)
        noise = (x - level.alpha * point) / level.sigma
        seen.append(noise)
        output = levels.from_x0(point.clone(), x, level, 1.0)
        assert_close(levels.to_x0(output, x, level, 1.0), point, rtol=1e-3, atol=1e-3)
        latents = scheduler.step(output, t, latents, return_dict=False)[0]
    # the last level of some is not clean, but the least noisy one: 0.03 where betas are VP's
    last = levels.sigma(len(scheduler.sigmas) - 1) if levels.has_sigmas else 0.0
    assert (latents - point).abs().max() < 4 * max(last, 0.03)
    if steady:
        for noise in seen[1:]:
            assert_close(noise, seen[0], rtol=2e-2, atol=2e-2)


def test_following_levels_are_the_next_ones():
    for name, options, _ in CASES:
        if name.startswith(("HeunDiscrete", "KDPM2", "PNDM")):
            continue  # two calls a level
        scheduler = getattr(diffusers, name)(**options)
        if getattr(scheduler, "order", 1) != 1:
            continue
        scheduler.set_timesteps(8)
        levels, x = Levels(scheduler), torch.zeros(1, 1, 2, 2)
        expected = None
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            if expected is not None:
                assert math.isclose(levels.at(t).level.sigma, expected.level.sigma, abs_tol=1e-6)
            expected = levels.following(t)
            scheduler.step(x, t, x)


def test_a_scheduler_without_levels_is_refused():
    class Strange:
        config = {"prediction_type": "epsilon"}  # noqa: RUF012

    with pytest.raises(ValueError, match="neither sigmas nor alphas_cumprod"):
        Levels(Strange())


def test_an_unknown_prediction_is_refused():
    scheduler = diffusers.DDIMScheduler()
    scheduler.register_to_config(prediction_type="energy")
    with pytest.raises(ValueError, match="the network predicts 'energy'"):
        Levels(scheduler)


def test_lengths_in_x0():
    scheduler = diffusers.EulerDiscreteScheduler(**VP)
    scheduler.set_timesteps(8)
    levels = Levels(scheduler)
    level = levels.at(scheduler.timesteps[3], 3).level
    x = torch.randn(1, 4)
    a, b = (levels.to_x0(torch.full((1, 4), v), x, level, 1.0) for v in (0.0, 1.0))
    assert (b - a).norm().item() == pytest.approx(2 * levels.length(level), rel=1e-4)
