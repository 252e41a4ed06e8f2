"""The closed-form judge: the exact classifier of shared covariances, at every level."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.energy import ClosedFormJudge, Posterior
from fairlead.exact import GaussianMixture
from fairlead.schedules import EDM, VP, Level, RectifiedFlow

COV = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.3]], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.3, 0.0], [0.0, 1.2, -0.4]], dtype=torch.float64)
MIXTURE = GaussianMixture(MEANS, COV.expand(3, 3, 3), labels=[0, 1, 2])


def exact_judge(label=1):
    values, basis = torch.linalg.eigh(COV)
    return ClosedFormJudge(MEANS, values, basis, 0.0, torch.ones(3) / 3, label)


def test_is_the_exact_classifier_at_every_level():
    x = 2 * torch.randn(20, 3, dtype=torch.float64)
    for level in (Level(0.0, 1.0, 0.0), Level(0.0, 0.7, 0.7), Level(0.0, 1.0, 30.0)):
        assert_close(exact_judge().log_probs(x, level), MIXTURE.log_posterior(x, level))


def test_gradient_is_the_formula():
    x, level = torch.randn(5, 3, dtype=torch.float64), Level(0.0, 0.8, 0.6)
    judge = exact_judge(2)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(-judge(leaf, level).sum(), leaf)
    p = judge.log_probs(x, level).exp()
    inverse = torch.linalg.inv(level.alpha**2 * COV + level.sigma**2 * torch.eye(3))
    assert_close(g, level.alpha * (MEANS[2] - p @ MEANS) @ inverse)


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=["vp", "edm"])
@pytest.mark.parametrize("w", [0.5, 1.0, 3.0, 8.0])
def test_guides_as_cfg_for_every_scale(schedule, w):
    options = {"sampler": "heun", "steps": 8, "dtype": torch.float64, "n": 4}
    d = MIXTURE.denoiser(schedule)
    led = fl.sample(d, {"label": -1}, guide=fl.ClassifierGuidance(exact_judge(), w), **options)
    cfg = fl.sample(d, {"label": 1}, guide=fl.CFG(w), **options)
    assert_close(led.x, cfg.x, rtol=1e-8, atol=1e-8)
    assert led.report.backwards == 0
    assert led.nfe.tolist() == [15] * 4


def test_fit_finds_means_and_covariance():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(20_000)
    x = MIXTURE.sample(len(y), y, generator)
    judge = ClosedFormJudge.fit(x, y, label=0)
    assert_close(judge.means, MEANS, rtol=0, atol=0.02)
    found = judge.basis * judge.values @ judge.basis.mT
    assert_close(found, COV, rtol=0, atol=0.02)
    z = MIXTURE.sample(500, generator=generator)
    level = Level(0.0, 0.9, 0.5)
    apart = judge.log_probs(z, level).exp() - MIXTURE.log_posterior(z, level).exp()
    assert apart.abs().max() < 0.05


def test_fewer_examples_than_dimensions_are_the_shrunk_covariance():
    """Only the span is decomposed; the probabilities are those of the whole matrix."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    judge = ClosedFormJudge.fit(x, y, shrinkage=0.3, label=1)
    means = torch.stack([x[:3].mean(0), x[3:].mean(0)])
    apart = x - means[y]
    S = apart.T @ apart / 4
    S = 0.7 * S + 0.3 * S.trace() / 10 * torch.eye(10, dtype=torch.float64)
    whole = GaussianMixture(means, S.expand(2, 10, 10), labels=[0, 1])
    z, level = torch.randn(7, 10, dtype=torch.float64), Level(0.0, 0.6, 0.8)
    assert_close(judge.log_probs(z, level), whole.log_posterior(z, level))


def test_shrinkage_is_that_of_ledoit_and_wolf():
    sklearn = pytest.importorskip("sklearn.covariance")
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 8, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.arange(1.0, 9.0).double()
    )
    y = torch.arange(30) % 2
    apart = torch.cat([x[y == k] - x[y == k].mean(0) for k in (0, 1)])
    expected = sklearn.ledoit_wolf_shrinkage(apart.numpy(), assume_centered=True)
    judge = ClosedFormJudge.fit(x, y)
    scale = apart.square().sum() / 28 / 8
    assert judge.rest == pytest.approx(expected * scale.item(), rel=1e-9)


def test_diagonal_covariance_is_naive_bayes():
    x = torch.tensor([[0.0, 0.0], [2.0, 1.0], [10.0, 5.0], [12.0, 7.0]])
    judge = ClosedFormJudge.fit(x, [0, 0, 1, 1], covariance="diagonal", shrinkage=0.0)
    assert_close(judge.values, torch.tensor([2.0, 1.25], dtype=torch.float64))


def test_prior_is_equal_or_observed():
    x = torch.tensor([[-1.0], [-1.2], [-0.8], [1.0]])
    y = [0, 0, 0, 1]
    far = torch.zeros(1, 1)
    level = Level(0.0, 1e-6, 1.0)  # nothing is seen: the prior is all there is
    equal = ClosedFormJudge.fit(x, y).log_probs(far, level).exp()
    seen = ClosedFormJudge.fit(x, y, prior="observed").log_probs(far, level).exp()
    assert_close(equal, torch.tensor([[0.5, 0.5]]), atol=1e-4, rtol=0)
    assert_close(seen, torch.tensor([[0.75, 0.25]]), atol=1e-4, rtol=0)


def test_labels_spread_over_unlabelled_samples():
    generator = torch.Generator().manual_seed(3)
    apart = GaussianMixture([[-3.0, 0.0], [3.0, 0.0]], [0.3, 0.3], labels=[0, 1])
    pool = apart.sample(200, generator=generator)
    x = torch.tensor([[-4.2, 1.0], [2.0, -1.2]], dtype=torch.float64)
    judge = ClosedFormJudge.fit(x, [0, 1], unlabelled=pool, prior="observed")
    # four standard errors of 100 samples of deviation 0.55
    assert_close(judge.means, apart.means, rtol=0, atol=4 * 0.055)
    assert_close(judge.prior, torch.tensor([0.5, 0.5]).double(), rtol=0, atol=0.15)


def test_images_are_flattened_and_float32_stays():
    x = torch.randn(8, 2, 4, 4)
    judge = ClosedFormJudge.fit(x, [0, 1] * 4)
    out = judge.log_probs(x, Level(0.0, 1.0, 0.5))
    assert (out.shape, out.dtype) == ((8, 2), torch.float32)
    assert_close(out.exp().sum(1), torch.ones(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: ClosedFormJudge.fit(x, [0, 1]), r"labels must be \(4,\)"),
        (lambda x: ClosedFormJudge.fit(x, [0, 0, 2, 2]), r"without examples: \[1\]"),
        (lambda x: ClosedFormJudge.fit(x, [0, 0, 1, -1]), "labels must fill"),
        (lambda x: ClosedFormJudge.fit(x, [0, 1, 2, 3]), "do not vary within their classes"),
        (lambda x: ClosedFormJudge.fit(x * float("nan"), [0, 0, 1, 1]), "must be finite"),
        (lambda x: ClosedFormJudge.fit(x, [0, 0, 1, 1], shrinkage=2.0), r"'auto' or in \[0, 1\]"),
        (lambda x: ClosedFormJudge.fit(x, [0, 0, 1, 1], covariance="ful"), "did you mean 'full'"),
        (
            lambda x: ClosedFormJudge.fit(x, [0, 0, 1, 1])(torch.zeros(1, 5)),
            "was fitted on 3 numbers a sample, got 5",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.randn(4, 3))


def test_start_of_a_straight_path_says_nothing():
    d = MIXTURE.denoiser(RectifiedFlow())
    out = fl.sample(d, {"label": -1}, guide=fl.ClassifierGuidance(exact_judge()), steps=4, n=3)
    assert bool(out.x.isfinite().all())


def test_judges_are_asked_for_other_classes():
    judge = exact_judge(0)
    z = torch.randn(3, 3, dtype=torch.float64)
    assert_close(judge.towards([0, 1, 2])(z), -MIXTURE.log_posterior(z).diagonal())
    assert isinstance(Posterior(MIXTURE, 0).towards(2), Posterior)
