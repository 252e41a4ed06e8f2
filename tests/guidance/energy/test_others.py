"""FlowChef, Dreamguider, EluCD, norm-based and gradient-free classifier guidance."""

from itertools import pairwise
from math import pi, sin, sqrt

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy import Classifier, Function, Linear, Posterior
from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM, VP, DiscreteVP, RectifiedFlow

MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]], 0.5, labels=[0, 1, 2])
E = Linear(torch.tensor([[1.0, 0.7]], dtype=torch.float64), [1.0], noise=0.5)
N = 4


def draw(guide, schedule=None, label=-1, **options):
    denoiser = MIXTURE.denoiser(schedule or VP())
    options = {"sampler": "ddim", "steps": 8, "dtype": torch.float64, "n": N, **options}
    return fl.sample(denoiser, {"label": label}, guide=guide, **options).x


def gradient(function, z):
    leaf = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return g


def start(schedule, steps=8):
    run = fl.Run(0, range(N), steps)
    levels = schedule.grid(steps)
    return levels, run, levels[0].sigma * run.normal(torch.empty(N, 2).double(), "start")


@pytest.mark.parametrize("iterations", [1, 3])
def test_flowchef_is_its_loop(iterations):
    levels, _, x = start(RectifiedFlow())
    for s, t in pairwise(levels):
        u = (x - MIXTURE.x0(x, s)) / s.t
        for _ in range(iterations):
            x = x - 0.03 * gradient(E, x - s.t * u)
        x = x + (t.t - s.t) * u
    guide = fl.FlowChef(E, 0.03, iterations=iterations)
    assert_close(draw(guide, RectifiedFlow(), sampler="euler"), x, rtol=0, atol=1e-10)


def test_flowchef_meets_a_full_measurement_in_one_step():
    """With E = |D - y|^2 / 2 and s = 1 the corrected estimate is y."""
    y = torch.tensor([0.3, -0.2], dtype=torch.float64)
    full = Linear(torch.eye(2, dtype=torch.float64), y)
    out = draw(fl.FlowChef(full, 1.0), RectifiedFlow(), sampler="euler", steps=4)
    assert_close(out, y.expand(N, 2), rtol=0, atol=1e-9)


def dreamguider(own=False, steps=8):
    """The published loop, on a discrete chain, with the current iterate in the maximum."""
    levels, run, x = start(DiscreteVP.linear(), steps)
    state = {}

    def estimate(key, f, g):
        size = g.norm(dim=1, keepdim=True)
        if key not in state:
            state[key] = [f, torch.zeros_like(size), size**2]
            return 1e-5 / size
        begin, most, total = state[key]
        most = torch.maximum(most, (f - begin).norm(dim=1, keepdim=True))
        state[key] = [begin, most, total + size**2]
        return most / state[key][2].sqrt()

    for i, (s, t) in enumerate(pairwise(levels)):
        run.advance()
        A, after = s.alpha**2, t.alpha**2
        a = A / after
        following = after / levels[i + 2].alpha ** 2 if i + 2 < len(levels) else 1.0
        S = sqrt(1 - A)
        clean = MIXTURE.x0(x, s)
        eps = (x - s.alpha * clean) / S
        g = gradient(E, clean)
        e = -(S / sqrt(A)) * g
        c, d = estimate("e", eps, e), estimate("d", clean, g)
        if own:
            c, d = d, c
        ct, dt = c * sqrt(following), -d * (1 - a) / (sqrt(a) * S)
        mean = (x - (1 - a) / S * eps) / sqrt(a)
        if t.sigma:
            mean = mean + sqrt((1 - after) / (1 - A) * (1 - a)) * run.normal(x, "sampler", 1)
        x = mean - ct * S * g - dt * S * e
    return x


@pytest.mark.parametrize("own", [False, True])
def test_dreamguider_is_its_loop(own):
    guide = fl.Dreamguider(E, pairing="own" if own else "crossed")
    out = draw(guide, DiscreteVP.linear(), sampler="ddpm")
    # the last step of the chain divides by a small S
    assert_close(out, dreamguider(own), rtol=1e-8, atol=1e-8)


def test_dreamguider_does_not_see_the_scale_of_the_energy():
    options = {"schedule": DiscreteVP.linear(), "sampler": "ddpm"}
    one = draw(fl.Dreamguider(E), **options)
    assert_close(draw(fl.Dreamguider(37.0 * E), **options), one, rtol=1e-9, atol=1e-9)
    flat = Function(lambda z: 0 * z.sum(1), name="flat")
    assert torch.equal(draw(fl.Dreamguider(flat), **options), draw("none", **options))


def test_elucd_shifts_the_mean_by_the_variance_and_the_bump():
    judge = Posterior(MIXTURE, 1, noisy=False)
    steps, levels = [], VP().grid(8)
    for guide in ("none", fl.EluCD(judge, 2.0, clip=0.7)):
        seen = []
        draw(guide, sampler="ddpm", callback=lambda step, seen=seen: seen.append(step.x))
        steps.append(seen)
    _, _, x = start(VP())
    s, t = levels[0], levels[1]
    g = gradient(lambda z: -judge(z), MIXTURE.x0(x, s).clamp(-0.7, 0.7))
    variance = t.sigma**2 * (1 - (s.alpha * t.sigma / (t.alpha * s.sigma)) ** 2)
    bump = max(0.0, 0.3 * variance * sin(pi * 8 / 8))
    assert_close(steps[1][0] - steps[0][0], 2.0 * (variance + bump) * g)
    assert variance > 0


def test_elucd_with_a_large_bump_goes_on_where_the_variance_has_ended():
    judge = Posterior(MIXTURE, 1, noisy=False)
    off = draw(fl.EluCD(judge, 1.0, gamma=0.0, clip=None), sampler="ddpm")
    on = draw(fl.EluCD(judge, 1.0, gamma=3.0, clip=None), sampler="ddpm")
    assert judge(on).mean() < judge(off).mean()


@pytest.mark.parametrize("scale", [0.01, 0.2])
def test_elucd_moves_the_sample_by_a_fixed_length(scale):
    """Whatever the classifier's scale: k_i R in root mean square, before the step."""
    judge = Posterior(MIXTURE, 1, noisy=False)
    schedule = EDM()
    levels, _, x = start(schedule)
    size = x.square().mean(1, keepdim=True).sqrt()
    g = gradient(lambda z: -judge(z), x / size.clamp(min=1))
    moved = x + scale * size * g / g.square().mean(1, keepdim=True).sqrt()
    clean = MIXTURE.x0(moved, levels[0])
    expected = clean + levels[1].sigma * (moved - clean) / levels[0].sigma
    for energy in (judge, 100.0 * judge):
        seen = []
        guide = fl.EluCD(energy, scale, form="edm")
        draw(guide, schedule, callback=lambda step, seen=seen: seen.append(step.x))
        assert_close(seen[0], expected)


def test_norm_guidance_has_the_share_it_is_asked_for():
    judge = Posterior(MIXTURE, 1)
    found = {}
    for rho in (0.0, 0.5):
        seen = []
        guide = fl.NormGuidance(judge, rho, w=2.0)
        draw(guide, label=1, callback=lambda step, seen=seen: seen.append(step.denoised))
        found[rho] = seen[0]
    levels, _, x = start(VP())
    s = levels[0]
    score = (s.alpha * found[0.0] - x) / s.sigma**2
    added = (s.alpha * (found[0.5] - found[0.0])) / s.sigma**2
    assert_close(added.norm(dim=1), 0.5 * score.norm(dim=1))
    assert_close(found[0.0], 2 * MIXTURE.x0(x, s, 1) - MIXTURE.x0(x, s))


def test_norm_guidance_does_not_see_the_classifiers_scale_and_is_cfg_at_zero():
    judge = Posterior(MIXTURE, 1)
    one = draw(fl.NormGuidance(judge, 0.3))
    assert_close(draw(fl.NormGuidance(0.1 * judge, 0.3)), one, rtol=1e-9, atol=1e-9)
    assert torch.equal(draw(fl.NormGuidance(judge, 0.0, w=3.0), label=1), draw("cfg(3)", label=1))
    clean = draw(fl.NormGuidance(Posterior(MIXTURE, 1, noisy=False), 0.3))
    assert bool(clean.isfinite().all())


def test_gfcg_by_hand():
    """Two classes: the mistaken one is the other, and w = 1 + w_max (1 - p_c)."""
    p = GaussianMixture([[-1.0], [1.0]], 0.5, labels=[0, 1])
    judge = Posterior(p, 0, noisy=False)
    seen = []
    fl.sample(
        p.denoiser(VP()), {"label": [0, 1, 1]}, guide=fl.GFCG(judge, 4.0), sampler="ddim",
        steps=5, dtype=torch.float64, callback=lambda step: seen.append(step.denoised),
    )  # fmt: skip
    level = VP().grid(5)[0]
    x = level.sigma * fl.Run(0, range(3)).normal(torch.empty(3, 1).double(), "start")
    label = torch.tensor([0, 1, 1])
    own, other = p.x0(x, level, label), p.x0(x, level, 1 - label)
    sure = p.log_posterior(own).exp().gather(1, label[:, None])
    assert_close(seen[0], other + (1 + 4.0 * (1 - sure)) * (own - other))


def test_gfcg_needs_a_judge_and_its_classes():
    with pytest.raises(ValueError, match="'linear' must give class log-probabilities"):
        draw(fl.GFCG(E), label=0)
    with pytest.raises(ValueError, match="'posterior' must give class log-probabilities of clean"):
        draw(fl.GFCG(Posterior(MIXTURE, 0)), label=0)
    judge = Posterior(MIXTURE, 0, noisy=False)
    with pytest.raises(ValueError, match=r"needs whole numbers of classes under .* 'lable'"):
        draw(fl.GFCG(judge, condition="lable"), label=0)
    two = Classifier(lambda z: z, 0)
    with pytest.raises(ValueError, match="gfcg: label must be one of the 2 classes"):
        draw(fl.GFCG(two), label=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.FlowChef(E, iterations=0), r"flowchef: iterations must be in \[1, inf\)"),
        (lambda: fl.FlowChef(E, iterations=1.5), "flowchef: iterations must be a whole number"),
        (lambda: fl.Dreamguider(E, pairing="cross"), "did you mean 'crossed'"),
        (lambda: fl.EluCD(E, form="ddmp"), "did you mean 'ddpm'"),
        (lambda: fl.EluCD(E, clip=0.0), r"elucd: clip must be in \(0, inf\]"),
        (lambda: fl.NormGuidance(E, -0.1), r"norm_guidance: rho must be in \[0, inf\)"),
        (lambda: fl.GFCG(E, -1.0), r"gfcg: w_max must be in \[0, inf\)"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
