"""Gaussian mixtures: closed forms against integrals, autograd and each other."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM, VP, Level, RectifiedFlow

# sums of a few dozen float64 terms of size 1 to 100: rounding stays well below 1e-9
TOL = {"rtol": 1e-9, "atol": 1e-9}


def random_mixture(seed, k=4, d=3, kind="full", classes=2):
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(k, d, dtype=torch.float64, generator=g)
    root = torch.randn(k, d, d, dtype=torch.float64, generator=g)
    covs = {
        "full": root @ root.mT + 0.1 * torch.eye(d),
        "diagonal": root[..., 0] ** 2 + 0.1,
        "scalar": root[:, 0, 0] ** 2 + 0.1,
    }[kind]
    weights = torch.rand(k, dtype=torch.float64, generator=g) + 0.1
    return GaussianMixture(means, covs, weights, torch.arange(k) % classes)


@st.composite
def cases(draw):
    """A mixture, points and a level, for every form of covariance."""
    seed = draw(st.integers(0, 10**6))
    k, d = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["full", "diagonal", "scalar"]))
    m = random_mixture(seed, k, d, kind)
    x = 2 * torch.randn(5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    level = Level(0.5, draw(st.floats(0.01, 1)), draw(st.floats(0.05, 3)))
    return m, x, level


few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(cases())
def test_score_is_the_gradient_of_the_log_density(case):
    m, x, level = case
    for label in (None, 1, torch.tensor([0, 1, -1, 2, 0])):
        z = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(m.log_density(z, level, label).sum(), z)
        assert_close(m.score(x, level, label), slope, **TOL)


@few
@given(cases())
def test_x0_is_tweedie(case):
    m, x, level = case
    for label in (None, 0, torch.tensor([0, 1, -1, 2, 0])):
        expected = (x + level.sigma**2 * m.score(x, level, label)) / level.alpha
        # the division by alpha >= 0.01 loses two digits
        assert_close(m.x0(x, level, label), expected, rtol=1e-7, atol=1e-7)


@few
@given(cases())
def test_class_denoisers_average_to_the_marginal_one(case):
    m, x, level = case
    posterior = m.log_posterior(x, level).exp()
    assert_close(posterior.sum(1), torch.ones(5, dtype=torch.float64), **TOL)
    parts = torch.stack([m.x0(x, level, c) for c in range(m.classes)], 1)
    assert_close((posterior[..., None] * parts).sum(1), m.x0(x, level), **TOL)
    bayes = [m.log_density(x, level, c) - m.log_density(x, level) for c in range(m.classes)]
    assert_close(m.log_posterior(x, level), torch.stack(bayes, 1) + m.prior.log(), **TOL)


@few
@given(cases())
def test_a_class_is_the_restricted_mixture(case):
    m, x, level = case
    for c in range(m.classes):
        alone = m.restrict(c)
        assert_close(m.log_density(x, level, c), alone.log_density(x, level), **TOL)
        assert_close(m.x0(x, level, c), alone.x0(x, level), **TOL)
        for mine, its in zip(m.moments(c), alone.moments(), strict=True):
            assert_close(mine, its, **TOL)


@few
@given(cases())
def test_forms_of_covariance_agree(case):
    m, x, level = case
    full = GaussianMixture(m.means, m.parts.covariances, m.weights, m.labels)
    assert full.parts.basis is not None
    assert_close(m.log_density(x, level, 1), full.log_density(x, level, 1), **TOL)
    assert_close(m.x0(x, level, 1), full.x0(x, level, 1), **TOL)
    assert_close(m.score(x, level), full.score(x, level), **TOL)


@few
@given(cases())
def test_a_batch_of_levels_is_a_loop(case):
    m, x, _ = case
    alpha = torch.tensor([1.0, 0.8, 0.5, 0.0, 1.0], dtype=torch.float64)
    sigma = torch.tensor([0.5, 0.6, 2.0, 1.0, 0.0], dtype=torch.float64)
    for shape in ((5,), (5, 1)):
        together = Level(alpha, alpha.reshape(shape), sigma.reshape(shape))
        rows = [Level(0.0, a, s) for a, s in zip(alpha.tolist(), sigma.tolist(), strict=True)]
        for method in (m.x0, m.score, m.log_density):
            loop = torch.cat([method(x[i : i + 1], rows[i], 1) for i in range(5)])
            assert_close(method(x, together, 1), loop, **TOL)


def test_ends_of_the_noise():
    m = random_mixture(0)
    x = torch.randn(6, 3, dtype=torch.float64)
    assert torch.equal(m.x0(x, Level(0.0, 1.0, 0.0), 1), x)
    for label in (None, 0, 1):
        mean = m.moments(label)[0].expand(6, 3)
        assert_close(m.x0(x, Level(1.0, 0.0, 1.0), label), mean, **TOL)


@pytest.mark.parametrize("label", [None, 0, 1])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 2.0])
def test_density_integrates_to_one_and_noise_convolves(label, sigma):
    m = random_mixture(1, d=1)
    level = Level(0.5, 0.7, sigma)

    def density(x, at=level):
        return m.log_density(torch.tensor([[x]], dtype=torch.float64), at, label).exp().item()

    grid = torch.linspace(-25, 25, 20001, dtype=torch.float64)
    total = m.log_density(grid[:, None], level, label).exp().sum() * (grid[1] - grid[0])
    assert total.item() == pytest.approx(1, abs=1e-12)
    if sigma:
        # p_t(x) = int p_0(y) N(x; alpha y, sigma^2) dy, by adaptive quadrature
        def inner(y, x):
            kernel = np.exp(-((x - 0.7 * y) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi) / sigma
            return density(y, None) * kernel

        for x in (-1.0, 0.4):
            value, _ = integrate.quad(inner, -12, 12, args=(x,), limit=200, points=[-2, 0, x, 2])
            assert density(x) == pytest.approx(value, rel=1e-7)


def test_density_by_hand():
    # two unit Gaussians at +-1, seen from 0: both N(1; 0, 1) = exp(-1/2) / sqrt(2 pi)
    m = GaussianMixture([-1.0, 1.0], 1.0, labels=[0, 1])
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert m.log_density(x).item() == pytest.approx(-0.5 - np.log(2 * np.pi) / 2, abs=1e-15)
    # sigma = 1: responsibilities equal, x0 = +-1 + (0 -+ 1)/2 for the classes, 0 together
    assert m.x0(x, Level(1.0, 1.0, 1.0), 1).item() == pytest.approx(0.5, abs=1e-15)
    assert m.x0(x, Level(1.0, 1.0, 1.0)).item() == pytest.approx(0, abs=1e-15)


def test_far_points_stay_finite():
    m = random_mixture(2)
    x = torch.full((1, 3), 1e4, dtype=torch.float64)
    assert m.log_density(x).isfinite().all()
    assert m.x0(x, Level(0.1, 1.0, 0.1)).isfinite().all()


def test_point_masses_denoise_to_data_and_have_no_clean_density():
    m = GaussianMixture([[0.0, 0.0], [1.0, 1.0]], 0.0)
    x = torch.tensor([[0.1, 0.1], [0.8, 1.0]], dtype=torch.float64)
    assert_close(m.x0(x, Level(0.1, 1.0, 0.05)), m.means, atol=1e-9, rtol=0)
    assert torch.equal(m.x0(x, Level(0.0, 1.0, 0.0)), x)
    with pytest.raises(ValueError, match="point mass"):
        m.log_density(x)


def test_samples_have_the_moments():
    m = random_mixture(3)
    g = torch.Generator().manual_seed(0)
    n = 40000
    for label in (None, 0, 1):
        x = m.sample(n, label, g)
        mean, cov = m.moments(label)
        deviation = cov.diagonal().sqrt()
        # five standard errors
        assert ((x.mean(0) - mean).abs() < 5 * deviation / n**0.5).all()
        assert_close(x.T.cov(), cov, atol=5 * cov.max().item() * (3 / n) ** 0.5, rtol=0)


def test_samples_of_mixed_labels():
    m = GaussianMixture([[0.0], [10.0], [20.0]], 0.01, [1.0, 2.0, 3.0], [0, 1, 1])
    label = torch.tensor([0, 1, 0, 1]).repeat(2000)
    x = m.sample(8000, label, torch.Generator().manual_seed(0))
    assert ((x[:, 0] > 5) == (label == 1)).all()
    share = (x[label == 1] > 15).double().mean().item()
    assert share == pytest.approx(0.6, abs=5 * (0.24 / 4000) ** 0.5)
    assert_close(m.prior, torch.tensor([1 / 6, 5 / 6], dtype=torch.float64))


def test_long_batches_go_in_chunks(monkeypatch):
    m = random_mixture(4)
    x = torch.randn(11, 3, dtype=torch.float64)
    level = Level(0.5, torch.rand(11, 1), torch.rand(11, 1) + 0.1)
    label = torch.arange(11) % 3 - 1
    whole = m.x0(x, level, label), m.log_posterior(x, level)
    monkeypatch.setattr("fairlead.exact.mixture.ELEMENTS", 40)
    assert_close(m.x0(x, level, label), whole[0], **TOL)
    assert_close(m.log_posterior(x, level), whole[1], **TOL)


def test_a_draw_at_the_border_stays_in_its_class(monkeypatch):
    m = GaussianMixture([[0.0], [10.0]], 0.01, labels=[0, 1])
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(*size, dtype=torch.float64))
    assert (m.sample(4, 1) > 5).all()


@pytest.mark.parametrize("schedule", [EDM(), VP(), RectifiedFlow()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoiser(schedule, dtype):
    m = random_mixture(5)
    denoiser = m.denoiser(schedule, models={"weak": m.widen(0.5).denoiser(schedule)})
    x = torch.randn(4, 3, dtype=dtype)
    label = torch.tensor([0, 1, -1, 1])
    t = schedule.t_max / 3
    out = denoiser(x, t, {"label": label})
    assert out.dtype == dtype
    assert_close(out, m.x0(x, schedule.level(t), label))
    assert_close(out[2:3], denoiser(x[2:3], t))
    # times by sample, whose levels have the dtype of x
    times = torch.full((4,), t, dtype=torch.float64)
    assert_close(denoiser(x, times, {"label": label}), out)
    null = denoiser.null_condition(denoiser_condition(label))
    assert_close(denoiser(x, t, null), denoiser(x, t))
    assert denoiser.shape == (3,)
    assert denoiser.trained == {"cond", "null"}
    weak = denoiser.models["weak"](x, t, {"label": label})
    assert not torch.allclose(weak, out)


def denoiser_condition(label):
    from fairlead.condition import Condition

    return Condition({"label": label})


def test_widening_adds_variance():
    for kind in ("full", "diagonal", "scalar"):
        m = random_mixture(6, kind=kind)
        x = torch.randn(4, 3, dtype=torch.float64)
        # clean data of the wide mixture is noisy data of the narrow one
        wide = m.widen(0.25)
        assert_close(wide.log_density(x, None, 1), m.log_density(x, Level(0.5, 1.0, 0.5), 1), **TOL)


def test_pickle():
    m = random_mixture(7)
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(pickle.loads(pickle.dumps(m)).score(x), m.score(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.0]], -1.0), "covs must be positive"),
        (([[0.0, 0.0]], [[[1.0, 2.0], [0.0, 1.0]]]), "symmetric"),
        (([[0.0, 0.0]], [[1.0, 2.0, 3.0]]), "covs must be a number"),
        (([[0.0, 0.0]], [1.0, 2.0]), "covs must be a number"),
        (([0.0, 1.0], 1.0, [1.0, 0.0]), "weights must be positive"),
        (([0.0, 1.0], 1.0, [1.0]), r"must be \(2,\)"),
        (([0.0, 1.0], 1.0, None, [0, 2]), r"labels must fill 0\.\.2"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_bad_inputs():
    m = random_mixture(8)
    with pytest.raises(ValueError, match=r"x must be \(B, 3\)"):
        m.log_density(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"label must be in 0\.\.1"):
        m.log_density(torch.zeros(2, 3), None, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="restrict"):
        m.restrict(2)


def test_independent_conditions_are_drawn_among_the_classes():
    d = GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1]).denoiser(EDM())
    out = fl.sample(d, {"label": [0, 1, 2, -1]}, guide="icg(2)", steps=4)
    assert out.x.isfinite().all()
    assert fl.sample(d, n=2, steps=4).x.isfinite().all()  # no condition: the marginal


def test_posterior_of_a_measurement_is_bayes_rule():
    """log p(x0 | y) - log p(x0) - log p(y | x0) is one constant."""
    covs = torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.2, 0.0], [0.0, 0.4]]], dtype=torch.float64)
    p = GaussianMixture([[0.0, 1.0], [2.0, -1.0]], covs, [1.0, 3.0], labels=[0, 1])
    operator = torch.tensor([[1.0, 0.7]], dtype=torch.float64)
    y = torch.tensor([0.4], dtype=torch.float64)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood = -((y - x @ operator.T) ** 2).sum(1) / (2 * 0.3**2)
    rest = p.given(operator, y, 0.3).log_density(x) - p.log_density(x) - likelihood
    assert_close(rest, rest[:1].expand(50), rtol=0, atol=1e-10)
