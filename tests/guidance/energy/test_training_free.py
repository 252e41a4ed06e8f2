"""Training-free guidance against the algorithm box, written out, and its corners."""

from math import sqrt

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy import Function, Linear
from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM, VP, RectifiedFlow

MIXTURE = GaussianMixture([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], 0.36)
A = torch.tensor([[1.0, 0.7]], dtype=torch.float64)
E = Linear(A, [1.0], noise=0.5)
STEPS, N = 8, 4


def draw(guide, sampler="ddim", schedule=None, **options):
    return fl.sample(
        MIXTURE.denoiser(schedule or VP()),
        guide=guide,
        **{"sampler": sampler, "steps": STEPS, "n": N, "dtype": torch.float64, **options},
    ).x


def gradient(function, z):
    leaf = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return g


def grid():
    """`A_t` and levels of the steps, noisiest first."""
    levels = VP().grid(STEPS)
    return levels, [v.alpha**2 for v in levels]


def algorithm(rho, mu, iterations, *, eta=0.0, ugd=None, energy=E):
    """TFG as published, for DDIM on a variance-preserving path; noise as `fl.sample` draws it.

    `rho(i, log_f)` and `mu(i)` are the schedules; `ugd` is the inner factor of universal guidance.
    """
    run = fl.Run(0, range(N), STEPS)
    levels, a = grid()
    x = levels[0].sigma * run.normal(torch.empty(N, 2).double(), "start")
    for i, s in enumerate(levels[:-1]):
        run.advance()
        r = a[i] / a[i + 1]

        def log_f(x, s=s):
            return -energy(MIXTURE.x0(x, s))

        clean = MIXTURE.x0(x, s)
        value = -energy(clean)
        delta_t = torch.as_tensor(rho(i, value), dtype=torch.float64).reshape(-1, 1) * gradient(
            log_f, x
        )
        delta_0 = torch.zeros_like(x)
        for _ in range(iterations):
            delta_0 = delta_0 + mu(i) * gradient(lambda z: -energy(z), clean + delta_0)
        eps = (x - s.alpha * clean) / s.sigma
        sig = eta * sqrt((1 - a[i + 1]) / (1 - a[i])) * sqrt(1 - r)
        inner = sqrt(a[i + 1]) * (1 if ugd is None else ugd(i, sig))
        x = sqrt(a[i + 1]) * clean + sqrt(max(1 - a[i + 1] - sig**2, 0)) * eps
        x = x + delta_t / sqrt(r) + inner * delta_0
        if sig:
            x = x + sig * run.normal(x, "sampler", 1)
    return x


def shape(kind):
    _, a = grid()
    r = [a[i] / a[i + 1] for i in range(STEPS)]
    h = {"increase": r, "decrease": [1 - v for v in r], "constant": [1.0] * STEPS}[kind]
    return [v * STEPS / sum(h) for v in h]


@pytest.mark.parametrize("kind", ["increase", "decrease", "constant"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_tfg_is_the_algorithm(kind, eta):
    h = shape(kind)
    guide = fl.TFG(E, rho=0.03, mu=0.02, iterations=3, rho_shape=kind, mu_shape=kind)
    expected = algorithm(lambda i, _: 0.03 * h[i], lambda i: 0.02 * h[i], 3, eta=eta)
    assert_close(draw(guide, f"ddim(eta={eta})"), expected, rtol=0, atol=1e-10)


def test_mean_of_the_schedules_is_the_scale():
    for kind in ("increase", "decrease", "constant"):
        assert sum(shape(kind)) / STEPS == pytest.approx(1.0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_dps_row(power):
    _, a = grid()

    def rho(i, value):
        return sqrt(a[i] / a[i + 1]) * 0.02 / value.abs() ** power

    out = draw(fl.DPS(E, 0.02, power=power))
    assert_close(out, algorithm(rho, lambda i: 0.0, 0), rtol=0, atol=1e-9)


def test_dps_of_the_squared_residual_is_the_gradient_of_its_length_twice():
    """zeta / ||r|| grad ||r||^2 = 2 zeta grad ||r||: the paper's form and its code's."""
    square = Function(lambda z: (z @ A.T - 1)[:, 0] ** 2, name="square")
    length = Linear(A, [1.0], form="norm")
    assert_close(draw(fl.DPS(square, 0.02)), draw(fl.DPS(length, 0.04, power=0.0)))


def test_freedom_and_mpgd_rows():
    _, a = grid()
    freedom = algorithm(lambda i, _: sqrt(a[i] / a[i + 1]) * 0.03, lambda i: 0.0, 0)
    assert_close(draw(fl.FreeDoM(E, 0.03)), freedom, rtol=0, atol=1e-10)
    assert_close(draw(fl.DPS(E, 0.03, power=0.0)), freedom, rtol=0, atol=1e-10)
    mpgd = algorithm(lambda i, _: 0.0, lambda i: 0.05, 1)
    assert_close(draw(fl.MPGD(E, 0.05)), mpgd, rtol=0, atol=1e-10)
    tfg = fl.TFG(E, rho=0.0, mu=0.05, iterations=1, mu_shape="constant")
    assert torch.equal(draw(tfg), draw(fl.MPGD(E, 0.05)))
    assert_close(
        draw(fl.MPGD(E, 0.05, iterations=3)),
        algorithm(lambda i, _: 0.0, lambda i: 0.05, 3),
        rtol=0,
        atol=1e-10,
    )


def test_lgd_without_spread_is_freedom_and_with_it_is_not():
    assert torch.equal(draw(fl.LGD(E, 0.03, gamma=0.0, samples=3)), draw(fl.FreeDoM(E, 0.03)))
    assert not torch.equal(draw(fl.LGD(E, 0.03)), draw(fl.FreeDoM(E, 0.03)))
    few, same = (draw(fl.LGD(E, 0.03, samples=2), seed=5) for _ in range(2))
    assert torch.equal(few, same)


def test_smoothing_is_the_log_of_the_mean():
    """A linear log f = b z has log E exp(b (z + std d)) = b z + (b std)^2 / 2: same gradient."""
    slope = Function(lambda z: -0.4 * z[:, 0], name="slope")
    assert_close(draw(fl.LGD(slope, 0.3, samples=1)), draw(fl.FreeDoM(slope, 0.3)))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_universal_guidance_is_its_row(eta):
    """s sqrt(r (1 - A)) kap and the inner factor, against the shift of both ends."""
    _, a = grid()

    def sig(i):
        r = a[i] / a[i + 1]
        return eta * sqrt((1 - a[i + 1]) / (1 - a[i])) * sqrt(1 - r)

    def rho(i, _):
        r = a[i] / a[i + 1]
        kap = sqrt((1 - a[i]) / r) - sqrt(max(1 - a[i + 1] - sig(i) ** 2, 0))
        return 0.7 * sqrt(r * (1 - a[i])) * kap

    def inner(i, sig):
        r = a[i] / a[i + 1]
        return 1 - sqrt(r * max(1 - a[i + 1] - sig**2, 0) / (1 - a[i]))

    expected = algorithm(rho, lambda i: 0.1, 2, eta=eta, ugd=inner)
    out = draw(fl.UGD(E, 0.7, m=2, mu=0.1, start="plain"), f"ddim(eta={eta})")
    assert_close(out, expected, rtol=0, atol=1e-10)
    shifted = draw(fl.UGD(E, 0.7, m=2, mu=0.1), f"ddim(eta={eta})")
    assert not torch.allclose(shifted, out, atol=1e-3)


def test_universal_guidance_without_backward_steps_is_classifier_guidance():
    for sampler in ("ddim", "heun", "dpmpp_2m"):
        led = draw(fl.ClassifierGuidance(E, 0.5), sampler)
        assert_close(draw(fl.UGD(E, 0.5), sampler), led, rtol=0, atol=1e-12)


def test_affine_model_has_a_constant_transposed_jacobian():
    """D = M x + b with M neither symmetric nor normal: Delta_t = rho M^T grad."""
    M = torch.tensor([[0.5, 0.3], [-0.2, 0.1]], dtype=torch.float64)

    def network(x, t):
        return x @ M.T + 0.1

    d = fl.Denoiser(network, VP(), "sample", shape=(2,))
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    s, t = VP().grid(3)[:2]
    seen = []
    guide = fl.FreeDoM(Function(lambda z: z[:, 0] ** 2 / 2, name="half"), 2.0)
    fl.sample(
        d, guide=guide, sampler="ddim", steps=3, x=x, dtype=torch.float64,
        callback=lambda step: seen.append(step.denoised),
    )  # fmt: skip
    clean = x @ M.T + 0.1
    g = torch.stack([clean[:, 0], 0 * clean[:, 0]], 1)
    assert_close(seen[0], clean - 2.0 / t.alpha * (g @ M))
    assert s.alpha < t.alpha


@pytest.mark.parametrize("sampler", ["ddim", "ddim(eta=1.0)", "ddpm", "heun", "dpmpp_2m", "unipc"])
def test_every_sampler_takes_it_and_the_constant_energy_is_off(sampler):
    flat = Function(lambda z: 0 * z.sum(1), name="flat")
    for guide in (fl.TFG(flat, gamma=0.1), fl.DPS(flat), fl.MPGD(flat), fl.UGD(flat, m=2)):
        assert torch.equal(draw(guide, sampler), draw("none", sampler))
    measured = E(draw(fl.TFG(E, rho=0.05, mu=0.05), sampler)).mean()
    assert measured < E(draw("none", sampler)).mean()


@pytest.mark.parametrize("guide", [fl.TFG(E, rho=0.05, mu=0.02), fl.DPS(E, 0.05), fl.MPGD(E, 0.05)])
def test_rescaled_paths_give_the_rescaled_samples(guide):
    """EDM levels at the signal-to-noise ratios of VP ones: the same path in other units."""

    class Same(EDM):
        def grid(self, steps, spacing=None, **options):
            levels = VP().grid(steps)
            return [self.level(v.sigma / v.alpha) for v in levels]

    first = VP().grid(STEPS)[0]
    x = first.sigma * torch.randn(N, 2, dtype=torch.float64)
    expected = draw(guide, x=x)
    assert_close(draw(guide, schedule=Same(), x=x / first.alpha), expected, rtol=0, atol=1e-9)


def test_straight_paths_start_without_a_signal():
    for guide in (fl.TFG(E), fl.DPS(E, 0.1), fl.LGD(E, 0.1), fl.MPGD(E, 0.1), fl.UGD(E, 0.1, m=1)):
        assert bool(draw(guide, schedule=RectifiedFlow()).isfinite().all()), str(guide)


def test_adds_to_cfg_and_shares_its_branch():
    mixture = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5, labels=[0, 1])
    d = mixture.denoiser(VP())
    out = fl.sample(
        d, {"label": [1] * 3}, guide=fl.CFG(2.0) + fl.TFG(E, rho=0.05, mu=0.05), steps=5,
        sampler="ddim", dtype=torch.float64,
    )  # fmt: skip
    assert out.nfe.tolist() == [10] * 3
    assert out.report.backwards == 5
    assert out.report.gradients == 20


def test_renoise_end_is_the_guide_without_the_term():
    """CFG's direction is in both ends, the gradient's in one; rules see both."""
    mixture = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.5, labels=[0, 1])
    d = mixture.denoiser(VP())
    options = {"sampler": "ddim", "steps": 1, "dtype": torch.float64, "n": 2}
    models = []
    for guide in (fl.CFG(2.0), fl.CFG(2.0) + fl.MPGD(E, 0.3)):
        from fairlead.condition import Condition
        from fairlead.guidance.evaluator import Evaluator
        from fairlead.guidance.guided import GuidedModel

        run = fl.Run(0, range(2), 3, levels=VP().grid(3))
        model = GuidedModel(guide, Evaluator(d, {"cond": Condition({"label": [1, 0]})}), run)
        level = VP().grid(3)[1]
        model.begin(level)
        models.append(model(torch.ones(2, 2, dtype=torch.float64), level))
    plain, led = models
    assert torch.equal(led.renoise, plain.denoise)
    assert not torch.allclose(led.denoise, plain.denoise)
    assert options["n"] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.TFG(E, rho_shape="rising"), "tfg: rho_shape must be one of increase"),
        (lambda: fl.TFG(E, gamma_shape="increase"), "tfg: gamma_shape must be one of decrease"),
        (lambda: fl.TFG(E, iterations=1.5), "tfg: iterations must be a whole number"),
        (lambda: fl.TFG(E, samples=0), r"tfg: samples must be in \[1, inf\)"),
        (lambda: fl.DPS(E, power=2.0), r"dps: power must be in \[0, 1\]"),
        (lambda: fl.LGD(E, samples=2.5), "lgd: samples must be a whole number"),
        (lambda: fl.MPGD(E, [0.1, 0.2], iterations=2), "several iterations take one zeta"),
        (lambda: fl.UGD(E, m=0.5), "ugd: m must be a whole number"),
        (lambda: fl.UGD(E, start="D"), "ugd: start must be one of shifted, plain"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noisy_judges_are_refused_before_the_first_step():
    noisy = Function(lambda x, level: x.sum(1), name="noisy", noisy=True)
    with pytest.raises(ValueError, match=r"dps: the energy 'noisy' judges noisy samples"):
        draw(fl.DPS(noisy))


def universal(s, m, mu, times, *, adam=False, clamp=None, cutoff=-float("inf"), backward=E):
    """Universal guidance as published, with DDIM of eta 0 and noise as `fl.sample` draws it."""
    run = fl.Run(0, range(N), STEPS)
    levels, a = grid()
    x = levels[0].sigma * run.normal(torch.empty(N, 2).double(), "start")
    for i, level in enumerate(levels[:-1]):
        run.advance()
        r = a[i] / a[i + 1]
        for j in range(times):
            clean = MIXTURE.x0(x, level)
            eps = (x - level.alpha * clean) / level.sigma
            eps = eps + s * level.sigma * gradient(lambda x, v=level: E(MIXTURE.x0(x, v)), x)
            begin = (x - level.sigma * eps) / level.alpha
            delta = torch.zeros_like(begin)
            for n in range(N):  # sample by sample, each stopped by its own energy
                own = torch.nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
                steps = (torch.optim.Adam if adam else torch.optim.SGD)([own], lr=mu)
                for _ in range(m):
                    steps.zero_grad()
                    value = backward(begin[n : n + 1] + own).sum()
                    if value.item() <= cutoff:
                        break
                    value.backward()
                    steps.step()
                    if clamp is not None:
                        bounded = (begin[n : n + 1] + own.data).clamp(-clamp, clamp)
                        own.data = bounded - begin[n : n + 1]
                delta[n] = own.data
            eps = eps - level.alpha / level.sigma * delta
            clean = (x - level.sigma * eps) / level.alpha
            following = sqrt(a[i + 1]) * clean + sqrt(1 - a[i + 1]) * eps
            if j < times - 1:
                x = sqrt(r) * following + sqrt(1 - r) * run.normal(x, "sampler", j + 1)
        x = following
    return x


TIGHT = E + Function(lambda z: 0.1 * z.square().sum(1), name="small")


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({}, 1),
        ({}, 3),
        ({"optimiser": "adam"}, 1),
        ({"optimiser": "adam", "clamp": 1.5}, 2),
        ({"clamp": 1.5}, 1),
        ({"cutoff": 0.05}, 1),
        ({"optimiser": "adam", "cutoff": 0.05, "backward": TIGHT}, 2),
    ],
)
@pytest.mark.parametrize("s", [0.7, 0.0])
def test_universal_guidance_is_the_published_loop(options, times, s):
    given = {k: v for k, v in options.items() if k != "optimiser"}
    expected = universal(s, 4, 0.1, times, adam="optimiser" in options, **given)
    guide = fl.UGD(E, s, m=4, mu=0.1, **options)
    out = draw(guide, f"recurrence('ddim', times={times})")
    assert_close(out, expected, rtol=0, atol=1e-9)


def test_backward_options_change_nothing_where_they_do_not_bind():
    plain = draw(fl.UGD(E, 0.7, m=3, mu=0.1))
    assert_close(draw(fl.UGD(E, 0.7, m=3, mu=0.1, clamp=1e6)), plain, rtol=0, atol=1e-12)
    assert torch.equal(draw(fl.UGD(E, 0.7, m=3, mu=0.1, backward=E)), plain)
    satisfied = draw(fl.UGD(E, 0.7, m=3, mu=0.1, cutoff=1e9))
    assert torch.equal(satisfied, draw(fl.UGD(E, 0.7)))


def test_adam_does_not_see_the_scale_of_the_energy():
    guides = (fl.UGD(k * E, 0.0, m=3, mu=0.05, optimiser="adam") for k in (1.0, 40.0))
    assert_close(*(draw(g) for g in guides), rtol=0, atol=1e-5)  # but for the 1e-8 of Adam


def test_energies_of_both_directions_are_asked_for_by_name():
    guide = "ugd('near', s=0.5, m=2, mu=0.1, backward='far')"
    assert str(fl.guide(guide)) == guide
    with pytest.raises(ValueError, match="asks for the energy 'far'"):
        draw(guide, energies={"near": E})
    out = draw(guide, energies={"near": E, "far": TIGHT})
    assert torch.equal(out, draw(fl.UGD(E, 0.5, m=2, mu=0.1, backward=TIGHT)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.UGD(E, m=1.5), "ugd: m must be a whole number"),
        (lambda: fl.UGD(E, start="shited"), "did you mean 'shifted'"),
        (lambda: fl.UGD(E, optimiser="adma"), "did you mean 'adam'"),
        (lambda: fl.UGD(E, clamp=0.0), r"ugd: clamp must be in \(0, inf\], got 0.0"),
        (lambda: fl.UGD(E, cutoff=float("nan")), "ugd: cutoff must be in"),
        (lambda: fl.UGD(E, backward=3), "ugd: energy must be an energy of fl.energy"),
    ],
)
def test_bad_values_of_universal_guidance(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_tfg_without_steps_is_ddim(eta):
    off = fl.TFG(E, rho=0.0, mu=0.0, gamma=0.7, samples=3)
    assert torch.equal(draw(off, f"ddim(eta={eta})"), draw("none", f"ddim(eta={eta})"))


def test_tfg_without_spread_does_not_see_the_number_of_draws():
    one, many = (draw(fl.TFG(E, rho=0.03, mu=0.02, samples=n)) for n in (1, 7))
    assert torch.equal(one, many)
    spread = draw(fl.TFG(E, rho=0.03, mu=0.02, samples=7, gamma=0.3))
    assert not torch.equal(one, spread)


def test_tfg_without_inner_steps_is_tfg_without_mu():
    none = draw(fl.TFG(E, rho=0.03, mu=0.5, iterations=0))
    assert torch.equal(none, draw(fl.TFG(E, rho=0.03, mu=0.0, iterations=4)))


def test_lgd_of_the_code_divides_once_more():
    for n in (1, 4):
        code = draw(fl.LGD(E, 0.08, samples=n, form="code"))
        assert_close(code, draw(fl.LGD(E, 0.08 / n, samples=n)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="did you mean 'code'"):
        fl.LGD(E, form="cod")
