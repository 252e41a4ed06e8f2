"""Blur guidance: exact on Gaussians, the limits of the blur, both states, clipping."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.condition import Condition
from fairlead.guidance.blur import gaussian_blur
from fairlead.schedules import RectifiedFlow
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
OPTIONS = {"steps": 2, "dtype": torch.float64, "seed": 4}


class Gaussian(fl.Denoiser):
    """Exact denoiser of `N(0, c I)` on images; the null condition has variance 2."""

    def __init__(self, c, schedule=None):
        schedule = schedule or fl.schedules.VP()
        super().__init__(lambda x, t: x, schedule, "sample", null={"label": -1}, shape=(1, 4, 5))
        self.c = c

    def predict(self, x, level, condition):
        c = self.c
        if "label" in condition.tensors:
            c = torch.where(condition["label"] < 0, 2.0, c).reshape(-1, 1, 1, 1).to(x)
        return x * level.alpha * c / (level.alpha**2 * c + level.sigma**2)


def once(denoiser, guide, x, t, condition=None):
    """The guided estimate at one point."""
    from fairlead.guidance.context import Run
    from fairlead.guidance.evaluator import Evaluator
    from fairlead.guidance.guided import GuidedModel

    states = {"cond": Condition(condition or {})}
    model = GuidedModel(fl.guide(guide), Evaluator(denoiser, states), Run(steps=1))
    level = denoiser.schedule.level(t)
    model.begin(level)
    return model(x, level).denoise, level


@pytest.mark.parametrize("schedule", [fl.schedules.VP(), RectifiedFlow()], ids=["vp", "flow"])
@pytest.mark.parametrize("s", [0.5, 2.0, -0.3])
def test_exact_on_gaussians(schedule, s):
    # along an eigenvector of gain h: eps (1 + s (1 - h) a^2 c / (a^2 c + sigma^2)); the mean over
    # the image has the gains 1 (constants) and 0
    c, d = 0.7, None
    x = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    d = Gaussian(c, schedule)
    guided, level = once(d, f"blur({s}, width={'1e999'})", x, 0.6)
    a, sigma = level.alpha, level.sigma
    eps = (x - a * d.predict(x, level, Condition())) / sigma
    mean = eps.mean((-2, -1), keepdim=True)
    share = a**2 * c / (a**2 * c + sigma**2)
    expected = mean + (eps - mean) * (1 + s * share)
    assert_close((x - a * guided) / sigma, expected)


def test_is_the_stated_formula_and_the_step_starts_from_x():
    d = tiny_denoiser(dtype=torch.float64)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    condition = Condition({"label": torch.tensor([3, 5])})
    guided, level = once(d, "blur(0.8, width=1.5, kernel=5)", x, 2.0, condition)
    estimate = d.predict(x, level, condition)
    blurred = gaussian_blur(estimate, 1.5, 5)
    eps = (x - estimate) / level.sigma
    there = d.predict(blurred + level.sigma * eps, level, condition)
    assert_close(guided, estimate - 0.8 * (there - blurred))


def test_with_cfg_the_null_prediction_can_be_degraded():
    d, x = Gaussian(0.7), torch.randn(2, 1, 4, 5).double()
    label = {"label": torch.tensor([0, 1])}
    both, _ = once(d, "cfg(3) + blur(0.5, state='null')", x, 0.5, label)
    null = {"label": torch.tensor([-1, -1])}
    plain, _ = once(d, "none", x, 0.5, null)
    alone, _ = once(d, "blur(0.5)", x, 0.5, null)
    cfg, _ = once(d, "cfg(3)", x, 0.5, label)
    assert_close(both, cfg + alone - plain)
    out = fl.sample(d, label, guide="cfg(3) + blur(0.5, state='null')", steps=3, sampler="ddim")
    assert out.nfe.tolist() == [9, 9]


def test_a_kernel_of_one_is_no_guidance():
    out = fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, guide="blur(5, kernel=1)", **OPTIONS)
    plain = fl.sample(tiny_denoiser(dtype=torch.float64), LABEL, **OPTIONS)
    assert_close(out.x, plain.x, rtol=1e-9, atol=1e-9)


def test_clipping_is_of_the_estimate_alone():
    d = tiny_denoiser(dtype=torch.float64)
    x = 3 * torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    condition = Condition({"label": torch.tensor([3, 5])})
    guided, level = once(d, "blur(0.8, clip=True)", x, 2.0, condition)
    estimate = d.predict(x, level, condition)
    assert estimate.abs().max() > 1
    blurred = gaussian_blur(estimate.clamp(-1, 1), 1.0, 9)
    there = d.predict(x + blurred - estimate, level, condition)
    assert_close(guided, estimate - 0.8 * (there - blurred))


def test_no_signal_no_guidance():
    schedule = RectifiedFlow()  # at t = 1 alpha is 0: the degraded input is x itself
    d = Gaussian(0.7, schedule)
    x = torch.randn(2, 1, 4, 5).double()
    assert torch.equal(once(d, "blur(2)", x, 1.0)[0], once(d, "none", x, 1.0)[0])


@pytest.mark.parametrize("kernel", [0, 4, -3, True, 2.5])
@pytest.mark.parametrize("cls", [fl.BlurGuidance, fl.SAG])
def test_bad_values(cls, kernel):
    with pytest.raises(ValueError, match=rf"{cls.name}: kernel must be an odd number .*{kernel}"):
        cls(1.0, kernel=kernel)
    with pytest.raises(ValueError, match=rf"{cls.name}: state must be one of cond, null"):
        cls(1.0, state="negative")
    with pytest.raises(ValueError, match=rf"{cls.name}: width must be in \(0, inf\]"):
        cls(1.0, width=0.0)
