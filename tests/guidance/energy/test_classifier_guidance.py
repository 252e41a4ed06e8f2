"""Classifier guidance on exact distributions, and what every gradient term shares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy import Function, Posterior
from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM, VP, RectifiedFlow
from fairlead.testing import tiny_denoiser

MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]], 0.5, labels=[0, 1, 2])
OPTIONS = {"sampler": "ddim", "steps": 12, "dtype": torch.float64, "n": 5}


def draw(guide, schedule=None, label=-1, mixture=MIXTURE, **options):
    denoiser = mixture.denoiser(schedule or VP())
    return fl.sample(denoiser, {"label": label}, guide=guide, **{**OPTIONS, **options})


@pytest.mark.parametrize("schedule", [VP(), EDM(), RectifiedFlow()], ids=["vp", "edm", "rf"])
@pytest.mark.parametrize("sampler", ["ddim(eta=1.0)", "heun", "dpmpp_2m", "ddpm"])
def test_exact_classifier_is_cfg_at_the_same_scale(schedule, sampler):
    judge = Posterior(MIXTURE, 1)
    for k in (1.0, 3.0):
        led = draw(fl.ClassifierGuidance(judge, k), schedule, sampler=sampler)
        cfg = draw(f"cfg({k})", schedule, label=1, sampler=sampler)
        # where alpha = 0 the classifier says nothing and CFG's difference is the prior's
        tolerance = 1e-9 if schedule.grid(12)[0].alpha else None
        if tolerance is None:
            continue
        assert_close(led.x, cfg.x, rtol=0, atol=tolerance)
        assert torch.equal(2 * led.nfe, cfg.nfe) or k == 1.0


def test_clean_classifier_through_the_network_has_the_jacobian_of_the_estimate():
    judge = Posterior(MIXTURE, 1, noisy=False)
    x = torch.randn(4, 2, dtype=torch.float64)
    level = VP().level(0.4)
    leaf = x.clone().requires_grad_()
    clean = MIXTURE.x0(leaf, level)
    (g,) = torch.autograd.grad(-judge(clean).sum(), leaf)
    expected = clean.detach() + 2.0 * level.sigma**2 / level.alpha * g
    assert_close(one_step(fl.ClassifierGuidance(judge, 2.0), x, level), expected)


def test_estimate_leaves_the_jacobian_out():
    judge = Posterior(MIXTURE, 1, noisy=False)
    x = torch.randn(4, 2, dtype=torch.float64)
    level = VP().level(0.4)
    clean = MIXTURE.x0(x, level).requires_grad_()
    (g,) = torch.autograd.grad(-judge(clean).sum(), clean)
    out = one_step(fl.ClassifierGuidance(judge, 1.0, point="estimate"), x, level)
    assert_close(out, clean.detach() + level.sigma**2 / level.alpha * g)


def one_step(guide, x, level):
    """The guided clean estimate at a level."""
    found = []
    grid = [level, VP().level(0.0)]

    class Fixed(VP):
        def grid(self, steps, spacing=None, **options):
            return grid

    fl.sample(
        MIXTURE.denoiser(Fixed()),
        {"label": -1},
        guide=guide,
        sampler="ddim",
        steps=1,
        x=x,
        dtype=torch.float64,
        callback=lambda step: found.append(step.denoised),
    )
    return found[0]


def test_mean_form_moves_the_next_sample_by_the_posterior_variance():
    judge = Posterior(MIXTURE, 1)
    grid = VP().grid(12)
    plain, led = [], []
    for guide, into in (("none", plain), (fl.ClassifierGuidance(judge, 1.5, form="mean"), led)):
        draw(guide, sampler="ddpm", callback=lambda step, into=into: into.append(step.x))
    s, t = grid[0], grid[1]
    x = s.sigma * fl.Run(0, range(5)).normal(torch.empty(5, 2).double(), "start")
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(-judge(leaf, s).sum(), leaf)
    variance = t.sigma**2 * (1 - (s.alpha * t.sigma / (t.alpha * s.sigma)) ** 2)
    assert_close(led[0] - plain[0], 1.5 * variance * g)


@given(st.floats(0.1, 5), st.floats(0.1, 3))
@settings(max_examples=10)
def test_scale_and_weight_of_the_energy_are_one(k, weight):
    judge = Posterior(MIXTURE, 1)
    a = draw(fl.ClassifierGuidance(judge, k * weight), steps=4).x
    assert_close(draw(fl.ClassifierGuidance(weight * judge, k), steps=4).x, a, rtol=1e-8, atol=1e-8)


def test_adds_to_cfg():
    """CFG at `w` and a classifier at `k` on the same class are CFG at `w + k`."""
    judge = Posterior(MIXTURE, 1)
    both = draw(fl.CFG(2.0) + fl.ClassifierGuidance(judge, 1.5), label=1).x
    assert_close(both, draw("cfg(3.5)", label=1).x, rtol=0, atol=1e-9)


def test_schedule_and_rule_act_on_it():
    judge = Posterior(MIXTURE, 1)
    guide = fl.ClassifierGuidance(judge, 2.0)
    off = draw(guide | fl.Interval(0.0, 0.0001))
    assert_close(off.x, draw("none").x) if not off.report.gradients else None
    assert draw(guide | fl.Interval(0.2, 0.6)).report.gradients < draw(guide).report.gradients
    held = draw(guide | fl.Threshold(0.9, ceiling=1.5), steps=6)
    assert bool(held.x.isfinite().all())


def test_cost_is_counted():
    judge = Posterior(MIXTURE, 1, noisy=False)
    out = draw(fl.ClassifierGuidance(judge, 1.0))
    assert out.nfe.tolist() == [12] * 5
    assert (out.report.backwards, out.report.gradients) == (12, 12)
    assert out.report.seconds > 0
    assert "backward passes: 12, energy gradients: 12" in str(out.report)
    noisy = draw(fl.ClassifierGuidance(Posterior(MIXTURE, 1)))
    assert (noisy.report.backwards, noisy.report.gradients) == (0, 12)


def test_checkpointing_and_splitting_change_nothing():
    d = tiny_denoiser(dtype=torch.float64)
    energy = Function(lambda z: z.square().mean((1, 2, 3)), name="small")
    runs = [
        fl.sample(
            d, {"label": [1, 2, 3]}, guide=fl.ClassifierGuidance(energy, 5.0), steps=3,
            dtype=torch.float64, **options
        )
        for options in ({}, {"checkpoint": True}, {"checkpoint": True, "max_batch": 2})
    ]  # fmt: skip
    for other in runs[1:]:
        assert_close(other.x, runs[0].x, rtol=1e-10, atol=1e-10)
        assert torch.equal(other.nfe, runs[0].nfe)


def test_no_graph_outlives_a_step():
    import gc

    def graphs():
        gc.collect()
        return sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.requires_grad)

    before, seen = graphs(), []
    d = tiny_denoiser()
    energy = Function(lambda z: z.square().mean((1, 2, 3)), name="small")
    out = fl.sample(
        d,
        {"label": [1]},
        guide=fl.ClassifierGuidance(energy),
        steps=4,
        callback=lambda step: seen.append(graphs() - before),
    )
    assert seen == [0] * 4
    assert not out.x.requires_grad


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda z: z.sum(), ValueError, r"energy 'bad' must return one number a sample, .* step 0"),
        (lambda z: 3.0, ValueError, r"energy 'bad' must return .* got <class 'float'> at step 0"),
        (lambda z: z.detach().sum(1), ValueError, "energy 'bad' has no gradient at step 0"),
        (
            lambda z: (z.sum(1) * 0 - 1).log(),
            FloatingPointError,
            "the value of energy 'bad' is NaN or infinite at step 0",
        ),
        (
            lambda z: (z[:, 0] * 0).sqrt(),
            FloatingPointError,
            "the gradient of energy 'bad' is NaN or infinite at step 0",
        ),
    ],
)
def test_bad_energies_are_named_with_the_step(function, error, message):
    with pytest.raises(error, match=message):
        draw(fl.ClassifierGuidance(Function(function, name="bad")))


def test_missing_energy_is_named_before_the_first_step():
    with pytest.raises(ValueError, match=r"asks for the energy 'measured'.*did you mean 'measure'"):
        draw("classifier_guidance('measured')", energies={"measure": Posterior(MIXTURE, 1)})


def test_inference_mode_is_explained():
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"gradients cannot be taken under torch.inference_mode"),
    ):
        draw(fl.ClassifierGuidance(Posterior(MIXTURE, 1)))
    with torch.inference_mode(), torch.inference_mode(False):
        draw(fl.ClassifierGuidance(Posterior(MIXTURE, 1)))


def test_network_without_a_derivative_is_explained():
    @torch.no_grad()
    def network(x, t, label):
        return 0.5 * x

    d = fl.Denoiser(network, VP(), "sample", shape=(2,))
    energy = Function(lambda z: z.square().sum(1), name="small")
    with pytest.raises(ValueError, match="branch 'cond' has no derivative in x"):
        fl.sample(d, {"label": [1]}, guide=fl.ClassifierGuidance(energy), steps=2)


def test_combine_says_that_the_network_is_missing():
    x = torch.zeros(1, 2)
    energy = Function(lambda z: z.square().sum(1), name="small")
    place = {"x": x, "t": 0.5, "schedule": VP()}
    with pytest.raises(ValueError, match=r"needs the network: use fl\.sample"):
        fl.combine(fl.ClassifierGuidance(energy), {"cond": x + 1}, **place)
    found = fl.combine(fl.ClassifierGuidance(energy, point="estimate"), {"cond": x + 1}, **place)
    level = VP().level(0.5)
    assert_close(found, x + 1 - 2 * level.sigma**2 / level.alpha * (x + 1))


def test_score_form_shifts_a_step_as_the_mean_form_or_by_half():
    """To first order in the step: all of it with the noise of eta = 1, a half without."""
    judge = Posterior(MIXTURE, 1)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def shift(guide, sampler, levels):
        ends = []
        for g in ("none", guide):
            out = fl.sample(
                MIXTURE.denoiser(VP()), {"label": -1}, guide=g, sampler=sampler, levels=levels,
                x=x, dtype=torch.float64,
            )  # fmt: skip
            ends.append(out.x)
        return (ends[1] - ends[0]).norm()

    found = {}
    for size in (0.02, 0.002):
        levels = [VP().level(0.5), VP().level(0.5 - size)]
        mean = shift(fl.ClassifierGuidance(judge, 1.0, form="mean"), "ddpm", levels)
        score = fl.ClassifierGuidance(judge, 1.0)
        found[size] = [shift(score, f"ddim(eta={eta})", levels) / mean for eta in (1.0, 0.0)]
    assert found[0.002][0] == pytest.approx(1.0, abs=0.02)
    assert found[0.002][1] == pytest.approx(0.5, abs=0.02)
    for i, limit in enumerate((1.0, 0.5)):
        assert abs(found[0.002][i] - limit) < 0.2 * abs(found[0.02][i] - limit)


def test_the_gradient_is_that_of_the_batchs_sum():
    """A batch of five is five batches of one: no mean over samples divides it."""
    judge = Posterior(MIXTURE, 1)
    together = draw(fl.ClassifierGuidance(judge, 2.0)).x
    alone = [draw(fl.ClassifierGuidance(judge, 2.0), n=1, first=i).x for i in range(5)]
    assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)


def test_similarity_in_a_noised_feature_space():
    """GLIDE: eps - k sigma g and mean + k V g, with g of exp(tau) <z(x, t), z_text> by hand."""
    text = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    W = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def encoder(x, level):
        return torch.tanh(x @ W) + level.sigma

    energy = fl.energy.Similarity(encoder, text, 2.5, noisy=True)
    grid = VP().grid(12)
    s, t = grid[0], grid[1]
    x = s.sigma * fl.Run(0, range(5)).normal(torch.empty(5, 2).double(), "start")
    leaf = x.clone().requires_grad_()
    z = encoder(leaf, s)
    (g,) = torch.autograd.grad((2.5 * (z / z.norm(dim=1, keepdim=True)) @ (text / 5)).sum(), leaf)
    plain, mean, eps = [], [], []
    for guide, into in (
        ("none", plain),
        (fl.ClassifierGuidance(energy, 3.0, form="mean"), mean),
        (fl.ClassifierGuidance(energy, 3.0), eps),
    ):
        draw(guide, sampler="ddpm", callback=lambda step, into=into: into.append(step))
    variance = t.sigma**2 * (1 - (s.alpha * t.sigma / (t.alpha * s.sigma)) ** 2)
    assert_close(mean[0].x - plain[0].x, 3.0 * variance * g)
    noise = [(x - s.alpha * step[0].denoised) / s.sigma for step in (eps, plain)]
    assert_close(noise[0], noise[1] - 3.0 * s.sigma * g)
