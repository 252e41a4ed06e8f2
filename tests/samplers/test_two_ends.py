"""CFG++ through every sampler: `denoise` moves the sample, `renoise` gives the noise.

The formulas are those of the catalogue's S002 in variance-exploding form, and the exact identity
with plain guidance at the weight `lambda / (1 - r)`.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from fairlead.samplers import SAMPLERS, Prediction, get
from fairlead.samplers.base import ancestral
from fairlead.schedules import EDM

SOLVERS = [name for name, cls in SAMPLERS.items() if cls.solver]
EXACT = {"rtol": 1e-11, "atol": 1e-11}
LAM = 0.6


@pytest.fixture
def pair(lab):
    """Conditional and unconditional data."""
    cond = lab.Gaussian(lab.data.mu, lab.data.var)
    free = lab.Gaussian(0 * lab.data.mu, 1 + lab.data.var)
    return cond, free


@pytest.fixture
def cfgpp(pair):
    def predict(x, level, lam=LAM):
        c, u = (d(x, level) for d in pair)
        return Prediction(u + lam * (c - u), u)

    return predict


@pytest.mark.parametrize("text", ["ddim", "euler", "dpmpp_1s", "ddim(eta=0.7)", "euler_ancestral"])
def test_first_order_step_is_guidance_at_an_implied_weight(lab, schedule, pair, cfgpp, text):
    cond, free = pair
    levels = schedule.grid(6)
    for s, t in pairwise(levels):
        x = lab.data.at(lab.z, s)
        down, _ = ancestral(s, t, getattr(get(text), "eta", 0.0))
        r = s.alpha * down.sigma / (down.alpha * s.sigma)
        w = LAM / (1 - r)

        def guided(x, lv, w=w):
            return free(x, lv) + w * (cond(x, lv) - free(x, lv))

        steps = [lab.drive(text, p, [s, t], x, schedule) for p in (cfgpp, guided)]
        assert_close(*steps, **EXACT)


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "pcg"])
def test_without_guidance_it_is_the_ordinary_solver(lab, schedule, pair, cfgpp, name):
    _, free = pair
    levels = schedule.grid(6)
    x = levels[0].sigma * lab.z
    plain = lab.drive(name, free, levels, x, schedule)
    both = lab.drive(name, lambda x, lv: cfgpp(x, lv, 0.0), levels, x, schedule)
    assert torch.equal(plain, both)


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "pcg"])
def test_the_output_is_the_last_denoised(lab, schedule, cfgpp, name):
    levels = schedule.grid(4)
    seen = []

    def predict(x, level):
        seen.append(cfgpp(x, level))
        return seen[-1]

    out = lab.drive(name, predict, levels, levels[0].sigma * lab.z, schedule)
    assert_close(out, seen[-1].denoise, **EXACT)


def released(cfgpp, levels, x, mix):
    """S002 step 4: the released multistep form, first and last step of first order."""
    last = None
    for s, t in pairwise(levels):
        d, u = cfgpp(x, s)
        if last is None or t.sigma == 0:
            x, h = d + t.sigma * (x - u) / s.sigma, -math.log(t.sigma / s.sigma) if t.sigma else 0
        else:
            h0, previous = last
            h = math.log(s.sigma / t.sigma)
            slope = ((d if mix else u) - previous) / (2 * h0 / h)
            x = d - math.exp(-h) * u + (1 - math.exp(-h)) * slope + math.exp(-h) * x
        last = (h, u)
    return x


@pytest.mark.parametrize("difference", ["released", "generic"])
def test_multistep_formula(lab, cfgpp, difference):
    levels = EDM().grid(10)
    x = levels[0].sigma * lab.z
    out = lab.drive(f"dpmpp_2m(difference={difference!r})", cfgpp, levels, x, EDM())
    assert_close(out, released(cfgpp, levels, x, difference == "released"), **EXACT)


def test_the_two_differences_differ(lab, cfgpp):
    levels = EDM().grid(10)
    a, b = (released(cfgpp, levels, levels[0].sigma * lab.z, mix) for mix in (True, False))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_singlestep_formula(lab, cfgpp, eta):
    """S002 step 5, `sigma_down` and `sigma_up` by its step 3."""
    levels = EDM().grid(8)
    x = y = levels[0].sigma * lab.z
    noise = lab.Driven(cfgpp, EDM(), 8).noise
    for s, t in pairwise(levels):
        up = eta * t.sigma * math.sqrt(s.sigma**2 - t.sigma**2) / s.sigma
        down = math.sqrt(t.sigma**2 - up**2)
        d, u = cfgpp(y, s)
        if down == 0:
            y = d
            continue
        h, middle = math.log(s.sigma / down), math.sqrt(s.sigma * down)
        y2 = middle / s.sigma * y + (1 - math.exp(-h / 2)) * u
        d, u = cfgpp(y2, EDM().level(middle))
        y = d - math.exp(-h) * u + down / s.sigma * y
        y = y + up * noise(y) if up else y
    assert_close(lab.drive(f"dpmpp_2s(eta={eta})", cfgpp, levels, x, EDM()), y, **EXACT)


def test_heun_moves_to_the_mean_of_denoise(lab, schedule, cfgpp):
    """By hand: `alpha' mean(D) + sigma' mean(eps) + [alpha dD_u + sigma deps] / 2`."""
    s, t = schedule.level_at(-1.0), schedule.level_at(0.5)
    x = lab.data.at(lab.z, s)
    d1, u1 = cfgpp(x, s)
    e1 = (x - s.alpha * u1) / s.sigma
    x2 = t.alpha * d1 + t.sigma * e1
    d2, u2 = cfgpp(x2, t)
    e2 = (x2 - t.alpha * u2) / t.sigma
    expected = t.alpha * (d1 + d2) / 2 + t.sigma * (e1 + e2) / 2
    expected += (s.alpha * (u1 - u2) + s.sigma * (e1 - e2)) / 2
    assert_close(lab.drive("heun", cfgpp, [s, t], x, schedule), expected, **EXACT)
