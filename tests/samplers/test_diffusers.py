"""Agreement with diffusers' schedulers: same analytic model, same levels, same noise.

Each tolerance is relative to the largest value of the batch at that step. diffusers builds its
tables in float32 (`alphas_cumprod` by a product of 1000 factors, relative error some 1e-6) and
steps in float32 (rounding 6e-8 a step, more where it divides by a small sigma); levels are taken
from those very tables where the scheduler offers them, and from our `DiscreteVP` elsewhere.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from fairlead.prediction import from_x0
from fairlead.samplers import get
from fairlead.schedules import EDM, VP, DiscreteVP, Level

diffusers = pytest.importorskip("diffusers")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = DiscreteVP.scaled_linear()


class Shared:
    """Our model with the noise of one generator, drawn as diffusers draws it."""

    def __init__(self, lab, schedule, steps):
        self.inner = lab.Driven(lambda x, lv: lab.data(x.double(), lv).float(), schedule, steps)
        self.generator = torch.Generator().manual_seed(11)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, x, level, *, gain=1.0):
        return self.inner(x, level, gain=gain)

    def noise(self, x):
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def ours(lab, text, levels, x, schedule=None):
    model = Shared(lab, schedule, len(levels) - 1)
    rule, seen = get(text), [x]
    for i, (s, t) in enumerate(pairwise(levels)):
        model.inner.step = i
        seen.append(rule.step(model, seen[-1], s, t))
    return seen


def theirs(lab, scheduler, at, x, **options):
    """`at[i]` is the level of the scheduler's i-th call; returns the samples in between."""
    kind = scheduler.config.prediction_type if "prediction_type" in scheduler.config else None
    seen = [x]
    for t, level in zip(scheduler.timesteps, at, strict=False):
        x = seen[-1]
        d = lab.data(x.double(), level)
        output = from_x0(d, x.double(), level.alpha, level.sigma, kind or "flow_prediction")
        seen.append(scheduler.step(output.float(), t, x, **options).prev_sample)
    return seen


def difference(a, b):
    """Largest difference of two trajectories, each sample relative to its largest value."""
    pairs = list(zip(a, b, strict=True))
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)


def discrete_levels(timesteps):
    """Their index `k` is our time `k + 1`; the last step goes to clean data."""
    return [*(SCHEDULE.level(float(t) + 1) for t in timesteps), SCHEDULE.level(0.0)]


def ve_levels(sigmas):
    return [Level(float(s), 1.0, float(s)) for s in sigmas]


def vp_levels(sigmas):
    """Their `sigma` is `sigma/alpha`."""
    return [Level(float(s), 1 / math.hypot(1, s), s / math.hypot(1, s)) for s in sigmas.tolist()]


def noise(lab, scale=1.0):
    g = torch.Generator().manual_seed(5)
    return scale * torch.randn(4, 3, generator=g)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(lab, generator, prediction, spacing, eta):
    peer = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, prediction_type=prediction, timestep_spacing=spacing
    )
    peer.set_timesteps(20)
    levels = discrete_levels(peer.timesteps)
    assert [lv.t for lv in levels] == [lv.t for lv in SCHEDULE.grid(20, spacing)]
    x = noise(lab)
    a = ours(lab, f"ddim(eta={eta})", levels, x)
    b = theirs(lab, peer, levels, x, eta=eta, generator=generator)
    assert difference(a, b) < 1e-5


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [25, 1000])
def test_ddpm(lab, generator, variance, steps):
    peer = diffusers.DDPMScheduler(**BETAS, clip_sample=False, variance_type=f"fixed_{variance}")
    peer.set_timesteps(steps)
    levels = discrete_levels(peer.timesteps)
    x = noise(lab)
    a = ours(lab, f"ddpm({variance!r})", levels, x)
    b = theirs(lab, peer, levels, x, generator=generator)
    # 1000 steps take beta as a difference of neighbouring float32 products: 6e-8 / 1e-3
    assert difference(a, b) < (1e-5 if steps == 25 else 2e-4)


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}])
def test_euler(lab, options):
    peer = diffusers.EulerDiscreteScheduler(**BETAS, **options)
    peer.set_timesteps(20)
    levels = ve_levels(peer.sigmas)
    x = noise(lab, peer.sigmas[0])
    assert difference(ours(lab, "euler", levels, x), theirs(lab, peer, levels, x)) < 1e-5


def test_euler_on_the_variance_preserving_path(lab):
    peer = diffusers.EulerDiscreteScheduler(**BETAS)
    peer.set_timesteps(20)
    levels = vp_levels(peer.sigmas)
    x = noise(lab, peer.sigmas[0])
    a = ours(lab, "euler", levels, x * levels[0].alpha)
    scaled = [y / lv.alpha for y, lv in zip(a, levels, strict=True)]
    assert difference(scaled, theirs(lab, peer, ve_levels(peer.sigmas), x)) < 1e-5


def test_euler_ancestral(lab, generator):
    peer = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    peer.set_timesteps(20)
    levels = ve_levels(peer.sigmas)
    x = noise(lab, peer.sigmas[0])
    a = ours(lab, "euler_ancestral", levels, x)
    assert difference(a, theirs(lab, peer, levels, x, generator=generator)) < 1e-5


@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}])
def test_heun(lab, options):
    peer = diffusers.HeunDiscreteScheduler(**BETAS, **options)
    peer.set_timesteps(12)
    # their list holds every inner level twice, one entry a stage
    calls = ve_levels(peer.sigmas)
    levels = [*calls[0:-1:2], calls[-1]]
    x = noise(lab, peer.sigmas[0])
    stages = theirs(lab, peer, stage_levels(levels), x)
    a = ours(lab, "heun", levels, x, EDM())
    assert difference(a, [*stages[0:-1:2], stages[-1]]) < 1e-5


def stage_levels(levels):
    """Where Heun's stages are evaluated: at a step's start, then at its end."""
    inner = [lv for s, t in pairwise(levels[:-1]) for lv in (s, t)]
    return [*inner, levels[-2]]


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpm_multistep(lab, generator, variant, steps, final, algorithm):
    """`sigma_min` shows the last step: first order below 15 steps, second above."""
    peer = diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type=algorithm, solver_type=variant, final_sigmas_type=final
    )
    peer.set_timesteps(steps)
    levels = vp_levels(peer.sigmas)
    name = "dpmpp_2m_sde" if algorithm.startswith("sde") else "dpmpp_2m"
    x = noise(lab)
    a = ours(lab, f"{name}(variant={variant!r})", levels, x)
    assert difference(a, theirs(lab, peer, levels, x, generator=generator)) < 1e-5


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpm_multistep_on_our_own_levels(lab, generator, algorithm):
    """Their time steps name levels of our schedule."""
    peer = diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type=algorithm)
    peer.set_timesteps(20)
    levels = discrete_levels(peer.timesteps)
    x = noise(lab)
    name = "dpmpp_2m_sde" if algorithm.startswith("sde") else "dpmpp_2m"
    b = theirs(lab, peer, levels, x, generator=generator)
    assert difference(ours(lab, name, levels, x), b) < 1e-5


def test_dpm_singlestep(lab):
    """On levels equal in log-SNR each second one is the middle of a step of ours.

    Their last pair is two first-order steps, so the comparison ends before it.
    """
    peer = diffusers.DPMSolverSinglestepScheduler(
        **BETAS, solver_order=2, use_exponential_sigmas=True, final_sigmas_type="zero"
    )
    peer.set_timesteps(20)
    calls = vp_levels(peer.sigmas)
    levels = calls[0:19:2]
    x = noise(lab)
    b = theirs(lab, peer, calls[:18], x)
    assert difference(ours(lab, "dpmpp_2s", levels, x, VP()), b[0::2]) < 1e-5


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("lower", [True, False])
def test_unipc(lab, order, variant, lower):
    peer = diffusers.UniPCMultistepScheduler(
        **BETAS,
        solver_order=order,
        solver_type=variant,
        lower_order_final=lower,
        final_sigmas_type="zero" if lower else "sigma_min",
    )
    peer.set_timesteps(12)
    levels = vp_levels(peer.sigmas)
    x = noise(lab)
    a = ours(lab, f"unipc({order}, {variant!r}, lower_order_final={lower})", levels, x)
    # they solve for rho in float32, with a condition number of some 100 at order 3
    assert difference(a, theirs(lab, peer, levels, x)) < (1e-5 if order == 2 else 5e-5)


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_flow_match_euler(lab, name):
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    peer.set_timesteps(sigmas=np.linspace(1.0, 1 / 20, 20))
    levels = [Level(float(s), 1 - float(s), float(s)) for s in peer.sigmas]
    x = noise(lab)
    assert difference(ours(lab, name, levels, x), theirs(lab, peer, levels, x)) < 1e-5
