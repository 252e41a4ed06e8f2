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


def classes(weak=False):
    """Three classes with a null, and a blurred weak model."""
    d = MIXTURE.denoiser(VP())
    if weak:
        wide = GaussianMixture([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]], 1.5, labels=[0, 1, 2])
        d.models = {"weak": wide.denoiser(VP())}
    return d


def led(guide, d=None, **options):
    given = {"sampler": "ddim", "steps": 6, "dtype": torch.float64}
    return fl.sample(d or classes(), {"label": [0, 1, 2]}, guide=guide, **{**given, **options}).x


JUDGE = Posterior(MIXTURE, 0, noisy=False)


def test_gfcg_with_a_constant_scale_is_cfg_or_autoguidance():
    null = fl.GFCG(JUDGE, 2.0, reference="null", scale="constant")
    assert_close(led(null), led("cfg(3)"), rtol=0, atol=1e-12)
    weak = fl.GFCG(JUDGE, 2.0, reference="wanted", scale="constant", model="weak")
    assert_close(
        led(weak, classes(True)), led("autoguidance(3)", classes(True)), rtol=0, atol=1e-12
    )


def test_gfcg_is_conditional_where_the_classifier_is_sure():
    sure = Classifier(lambda z: torch.eye(3, dtype=z.dtype) * 1e3, 0, name="sure")
    assert torch.equal(led(fl.GFCG(sure, 16.0)), led("none"))


def test_gfcg_takes_functions_for_the_class_and_the_scale():
    def following(p, wanted):
        return (wanted + 1) % 3

    def half(p, wanted):
        return torch.full((len(p),), 0.5)

    carried = fl.GFCG(JUDGE, 2.0, reference=following, scale=half)
    assert str(carried) == "gfcg('posterior', w_max=2.0, reference='following', scale='half')"
    assert fl.guide(str(carried)) == carried
    named = led(str(carried), energies={"posterior": JUDGE}, rewards={"following": following,
                                                                     "half": half})  # fmt: skip
    assert torch.equal(led(carried), named)
    own = fl.GFCG(JUDGE, 1.0, reference=following, scale="constant")
    assert_close(led(own), named, rtol=0, atol=1e-12)  # 2 * 0.5
    with pytest.raises(ValueError, match=r"gfcg: there is no reward 'folowing'"):
        led(fl.GFCG(JUDGE, reference="folowing"))
    with pytest.raises(ValueError, match=r"gfcg: scale must be a name or a function .* got 3"):
        fl.GFCG(JUDGE, scale=3)


def test_elucd_without_its_additions_is_classifier_guidance_of_the_mean():
    """gamma = 0, no bound: the shift by the posterior variance, stopped at the estimate."""
    for sampler in ("ddpm", "ddim"):
        ours = draw(fl.EluCD(JUDGE, 1.5, gamma=0.0, clip=None), sampler=sampler)
        guide = fl.ClassifierGuidance(JUDGE, 1.5, form="mean", point="estimate")
        assert_close(ours, draw(guide, sampler=sampler), rtol=0, atol=1e-12)


def test_elucd_is_off_at_scale_zero_in_both_forms():
    for form in ("ddpm", "edm"):
        assert torch.equal(draw(fl.EluCD(JUDGE, 0.0, form=form)), draw("none"))


def test_flowchefs_chain_rule_leaves_out_the_jacobian_of_the_velocity():
    """grad_x L(x - t u(x)) = (I - t J_u)^T grad L, of which FlowChef keeps the identity."""
    level = RectifiedFlow().level(0.6)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def u(x):
        return (x - MIXTURE.x0(x, level)) / level.t

    clean = x - level.t * u(x)
    short = gradient(E, clean)
    full = gradient(lambda x: E(x - level.t * u(x)), x)
    for i in range(3):
        J = torch.autograd.functional.jacobian(lambda x: u(x[None])[0], x[i])
        expected = (torch.eye(2, dtype=torch.float64) - level.t * J).T @ short[i]
        assert_close(full[i], expected)
    moved = []
    guide = fl.FlowChef(E, 0.03)
    levels = [level, RectifiedFlow().level(0.3)]
    fl.sample(
        MIXTURE.denoiser(RectifiedFlow()), {"label": -1}, guide=guide, sampler="euler",
        levels=levels, x=x, dtype=torch.float64, callback=lambda step: moved.append(step.x),
    )  # fmt: skip
    assert_close(moved[0], x - 0.03 * short + (0.3 - 0.6) * u(x))


def test_flowchef_by_adam_moves_by_the_sign_and_begins_anew_each_step():
    levels, _, x = start(RectifiedFlow())
    for s, t in pairwise(levels):
        u = (x - MIXTURE.x0(x, s)) / s.t
        x = x - 0.03 * gradient(E, x - s.t * u).sign()
        x = x + (t.t - s.t) * u
    for k in (1.0, 50.0):
        guide = fl.FlowChef(k * E, 0.03, optimiser="adam")
        # Adam's 1e-8 in the denominator
        assert_close(draw(guide, RectifiedFlow(), sampler="euler"), x, rtol=0, atol=1e-6)


def test_flowchef_along_a_residual_takes_no_gradient():
    A = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([0.4, 0.1], dtype=torch.float64)
    levels, _, x = start(RectifiedFlow())
    for s, t in pairwise(levels):
        u = (x - MIXTURE.x0(x, s)) / s.t
        x = x + 0.1 * (y - (x - s.t * u) @ A.T)
        x = x + (t.t - s.t) * u
    guide = fl.FlowChef(Linear(A, y), 0.1, along="residual")
    assert_close(draw(guide, RectifiedFlow(), sampler="euler"), x, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="the residual of 'linear' has 1 numbers and a sample 2"):
        draw(fl.FlowChef(E, along="residual"))
    with pytest.raises(ValueError, match="the energy 'flat' has no residual to follow"):
        draw(fl.FlowChef(Function(lambda z: z.sum(1), name="flat"), along="residual"))


@pytest.mark.parametrize("maximum", ["current", "earlier"])
@pytest.mark.parametrize("ratios", ["step", "cumulative"])
def test_dreamguiders_open_readings_are_its_loop_too(maximum, ratios):
    levels, run, x = start(DiscreteVP.linear())
    state = {}

    def estimate(key, f, g):
        size = g.norm(dim=1, keepdim=True)
        begin, most, total = state.get(key, (f, 0 * size, 0 * size))
        reached = torch.maximum(most, (f - begin).norm(dim=1, keepdim=True))
        state[key] = (begin, reached, total + size**2)
        counts = reached if maximum == "current" else most
        distance = torch.where(counts == 0, torch.full_like(size, 1e-5), counts)
        if maximum == "earlier":
            distance = most.clamp(min=1e-5)
        return distance / (total + size**2).sqrt()

    for i, (s, t) in enumerate(pairwise(levels)):
        run.advance()
        A, after = s.alpha**2, t.alpha**2
        a, S = A / after, sqrt(1 - A)
        later = after / levels[i + 2].alpha ** 2 if i + 2 < len(levels) else 1.0
        clean = MIXTURE.x0(x, s)
        eps = (x - s.alpha * clean) / S
        g = gradient(E, clean)
        c, d = estimate("e", eps, -(S / sqrt(A)) * g), estimate("d", clean, g)
        mean = (x - (1 - a) / S * eps) / sqrt(a)
        if t.sigma:
            mean = mean + sqrt((1 - after) / (1 - A) * (1 - a)) * run.normal(x, "sampler", 1)
        root = sqrt(later if ratios == "step" else after)
        x = mean - S * (c * root + d * (1 - a) / sqrt(a * A)) * g
    guide = fl.Dreamguider(E, maximum=maximum, ratios=ratios)
    assert_close(draw(guide, DiscreteVP.linear(), sampler="ddpm"), x, rtol=1e-8, atol=1e-8)
    scaled = draw(fl.Dreamguider(9.0 * E, maximum=maximum, ratios=ratios), DiscreteVP.linear())
    plain = draw(fl.Dreamguider(E, maximum=maximum, ratios=ratios), DiscreteVP.linear())
    assert_close(scaled, plain, rtol=1e-9, atol=1e-9)


def test_dreamguiders_leaves_are_collinear():
    """g_E = -(S / sqrt(A)) g_D, which is how the gradient in the noise is made."""
    level = VP().level(0.5)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clean = MIXTURE.x0(x, level)
    eps = (x - level.alpha * clean) / level.sigma
    in_noise = gradient(lambda e: E((x - level.sigma * e) / level.alpha), eps)
    assert_close(in_noise, -(level.sigma / level.alpha) * gradient(E, clean))


def test_norms_are_taken_where_a_mask_says():
    """Guided-TTS 2: what is padded does not count."""
    judge = Posterior(MIXTURE, 1)
    mask = {"real": [1.0, 0.0]}
    found = {}
    for rho in (0.0, 0.5):
        seen = []
        guide = fl.NormGuidance(judge, rho, mask="real")
        draw(guide, masks=mask, callback=lambda step, seen=seen: seen.append(step.denoised))
        found[rho] = seen[0]
    levels, _, x = start(VP())
    s = levels[0]
    score = (s.alpha * found[0.0] - x) / s.sigma**2
    added = (s.alpha * (found[0.5] - found[0.0])) / s.sigma**2
    assert_close(added[:, 0].abs(), 0.5 * score[:, 0].abs())
    whole = draw(fl.NormGuidance(judge, 0.5, mask="real"), masks={"real": [1.0, 1.0]})
    assert_close(whole, draw(fl.NormGuidance(judge, 0.5)))
    with pytest.raises(ValueError, match="norm_guidance: the mask 'real' is missing"):
        draw(fl.NormGuidance(judge, 0.5, mask="real"))
