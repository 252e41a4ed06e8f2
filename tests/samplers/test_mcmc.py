"""Markov chain correctors: invariance, limits, and the numbers of the tilted Gaussian."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.condition import Condition
from fairlead.exact import GaussianMixture, GaussianPair, t1_levels
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.samplers import MCMC
from fairlead.samplers.mcmc import _Target
from fairlead.schedules import Level
from fairlead.studies.claims._exact import end_variance
from fairlead.testing import tiny_denoiser

PAIR = GaussianPair()
N = 4000


def model_of(distribution, guide="cfg(1)"):
    denoiser = distribution.denoiser(fl.schedules.EDM())
    states = {"cond": Condition({"label": torch.zeros(N, dtype=torch.long)})}
    model = GuidedModel(fl.guide(guide), Evaluator(denoiser, states), Run(steps=1, record=False))
    model.begin(Level(1.0, 1.0, 1.0))
    return model


@pytest.mark.parametrize("chain", ["mala", "hmc"])
@pytest.mark.parametrize("h", [0.2, 1.2])
def test_metropolis_keeps_the_target_at_any_step_size(chain, h):
    mixture = GaussianMixture([[-1.5], [1.5]], 0.1, [0.3, 0.7])
    level = Level(0.3, 1.0, 0.3)
    x = mixture.sample(N, generator=torch.Generator().manual_seed(1))
    x = x + 0.3 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    model = model_of(mixture)
    rule = MCMC(chain, steps=25, leapfrog=2, unit="absolute")
    target = _Target(model, level, h)
    after = rule._langevin(target, x) if chain == "mala" else rule._hamiltonian(target, x, 1.0)
    rate = (model.carried["accepted"].mean() / 25).item()
    assert 0.02 < rate < 0.99
    for f in (torch.sign, torch.square):  # 4 standard errors
        assert abs(f(after).mean() - f(x).mean()) < 4 * f(x).std() * (2 / N) ** 0.5


def test_the_uncorrected_chain_diverges_at_a_step_size_that_mala_survives():
    level, x = Level(0.3, 1.0, 0.3), torch.randn(N, 1, dtype=torch.float64)
    rule = MCMC("ula", steps=25, unit="absolute")
    assert rule._langevin(_Target(model_of(PAIR), level, 3.0), x).abs().max() > 1e3


@pytest.mark.parametrize("chain", ["ula", "mala", "uhmc", "hmc"])
def test_without_steps_it_is_the_sampler(chain):
    denoiser = PAIR.denoiser(fl.schedules.EDM())
    a, b = (
        fl.sample(denoiser, {"label": [0, 0]}, guide="cfg(3)", sampler=s, steps=5).x
        for s in (f"mcmc('{chain}', steps=0)", "ddpm")
    )
    assert torch.equal(a, b)


def test_chains_move_the_tilted_gaussian_towards_its_density():
    """From the SDE's 0.3875 to 2 / (1 + w) = 0.5, exactly computed."""
    levels = t1_levels(400)
    ends = [
        end_variance(
            PAIR,
            f"mcmc('ula', steps={n}, h=0.5, sampler='ddpm')",
            "cfg(3)",
            levels,
            402.0,
            draws=n + 1,
        )
        for n in (0, 1, 5, 20)
    ]
    assert ends == sorted(ends)
    assert abs(ends[0] - PAIR.sde_variance(3)) < 0.02  # 400 levels
    assert abs(ends[-1] - PAIR.tilted_variance(3)) < 0.02


@pytest.mark.parametrize("chain", ["ula", "mala", "uhmc", "hmc"])
def test_evaluations_as_declared(chain):
    rule = MCMC(chain, steps=4, leapfrog=2)
    out = fl.sample(PAIR.denoiser(fl.schedules.EDM()), {"label": [0]}, sampler=rule, steps=3)
    assert out.nfe.tolist() == [2 * rule.evaluations + 1]


def test_the_guided_density_is_the_sum_of_its_parts():
    level = Level(0.5, 1.0, 0.5)
    x = torch.randn(N, 1, dtype=torch.float64)
    model = model_of(PAIR, "cfg(3)")
    free, own = PAIR.log_density(x, level), PAIR.log_density(x, level, 0)
    assert_close(model.log_density(x, level), 3 * own - 2 * free)


def test_what_has_no_density_is_named():
    x, level = torch.randn(N, 1, dtype=torch.float64), Level(0.5, 1.0, 0.5)
    with pytest.raises(ValueError, match=r"cfg\(3.0\) \| apg\(\) has no density"):
        model_of(PAIR, "cfg(3) | apg()").log_density(x, level)
    tiny = tiny_denoiser()
    with pytest.raises(ValueError, match=r"Denoiser\(log_density"):
        fl.sample(tiny, {"label": [1]}, sampler="mcmc('mala')", steps=3)


def test_a_network_may_know_its_density():
    def log_density(x, t, label):
        return -(x**2).flatten(1).sum(1) / 2 / (1 + (8 * t).exp())

    denoiser = fl.Denoiser(
        lambda x, t, label: x / (1 + (8 * t[:, None]).exp()),  # t is log(sigma) / 4
        fl.schedules.EDM(0.01, 20.0),
        "sample",
        null={"label": 1},
        log_density=log_density,
    )
    sampler = MCMC("mala", steps=4, h=0.5)
    out = fl.sample(denoiser, {"label": torch.zeros(2000)}, sampler=sampler, shape=(2000, 1))
    assert abs(out.x.var() - 1) < 0.15  # 4 standard errors


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="chain must be one of ula, mala, uhmc, hmc, got 'mal'"):
        MCMC("mal")
