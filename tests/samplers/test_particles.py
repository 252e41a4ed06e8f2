"""Samplers that weigh samples or choose among them: limits, groups, closed forms, bad input."""

import math

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.exact import GaussianMixture, GaussianPair, t1_levels
from fairlead.samplers.particles import effective_share, multinomial, shares, systematic
from fairlead.studies.claims._exact import OnLevels

PAIR = GaussianPair()
MIX = GaussianMixture([[-1.0], [1.0]], 0.3, [0.6, 0.4])


def draw(denoiser, sampler, guide="none", n=64, label=0, **options):
    labels = torch.full((n,), label) if isinstance(label, int) else torch.tensor(label)
    options = {"steps": 6, "dtype": torch.float64, "record": False, **options}
    return fl.sample(denoiser, {"label": labels}, guide=guide, sampler=sampler, **options)


def t1(steps):
    return PAIR.denoiser(OnLevels(levels=tuple(t1_levels(steps))))


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_weights_are_equal_without_a_tilt(w):
    out = draw(t1(30), "feynman_kac", f"cfg({w})", steps=30)
    assert_close(out.weights, torch.full((64,), 1 / 64, dtype=torch.float64))


def test_weighted_samples_have_the_tilted_variance():
    """0.5 where the SDE alone gives 0.3875; 3 standard errors of 6000 samples are 0.03."""
    out = draw(t1(300), "feynman_kac", "cfg(3)", n=6000, steps=300)
    variance = (out.weights * out.x[:, 0] ** 2).sum().item()
    assert abs(variance - PAIR.tilted_variance(3)) < 0.03
    assert abs(out.x.var().item() - PAIR.sde_variance(3)) < 0.03
    assert out.nfe.unique().tolist() == [600]


def test_the_weight_of_cfg_by_hand():
    """One step from u = 4 to 1: log W = (3/2) w (w - 1) (s_c - s_u)^2."""
    levels = (fl.schedules.Level(2.0, 1.0, 2.0), fl.schedules.Level(1.0, 1.0, 1.0))
    end = fl.schedules.Level(0.0, 1.0, 0.0)
    denoiser = PAIR.denoiser(OnLevels(levels=(*levels, end)))
    x = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    seen = []

    class Watched(fl.samplers.FeynmanKac):
        def step(self, model, x, s, t):
            out = super().step(model, x, s, t)
            seen.append(model.carried["log_weights"])
            return out

    draw(denoiser, Watched(0.0), "cfg(3)", n=2, steps=2, x=x)
    apart = (x / 6 - x / 5)[:, 0] ** 2  # s_u = -x/(2+4), s_c = -x/(1+4)
    assert_close(seen[0], 1.5 * 3 * 2 * apart)


def test_nothing_is_drawn_anew_outside_the_window():
    """Weights go on adding up, so a closed window is the same as a threshold of 0."""
    never, closed, late = (
        draw(t1(30), f"feynman_kac({options})", "cfg(3)", n=64, steps=30)
        for options in ("threshold=0", "threshold=1, high=0.0", "threshold=1, low=0.5")
    )
    assert torch.equal(never.x, closed.x)
    assert torch.equal(never.weights, closed.weights)
    assert not torch.equal(never.x, late.x)
    assert len(never.x.unique()) == 64


def test_groups_are_the_conditions_and_never_mix():
    mixture = GaussianMixture([[-9.0], [9.0]], 0.1, labels=[0, 1])
    label = [0, 1] * 40
    denoiser = mixture.denoiser(fl.schedules.EDM())
    out = draw(denoiser, "feynman_kac(threshold=1)", "cfg(1.5)", label=label, steps=20)
    assert_close(out.x[::2].sign(), -torch.ones(40, 1, dtype=torch.float64))
    assert_close(out.x[1::2].sign(), torch.ones(40, 1, dtype=torch.float64))
    assert_close(out.weights[::2].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_rule_is_refused():
    with pytest.raises(ValueError, match="not affine in its branches"):
        draw(t1(4), "feynman_kac", "cfg(3) | apg()", steps=4)


@pytest.mark.parametrize("draw_from", [systematic, multinomial])
def test_resampling_keeps_the_shares(draw_from):
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    u = torch.rand(3000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(draw_from(weights, row), minlength=4) for row in u])
    assert_close(counts.double().mean(0) / 4, weights, rtol=0, atol=0.02)  # 4 standard errors
    if draw_from is systematic:
        assert ((counts - 4 * weights).abs() < 1).all()


def test_shares_by_hand():
    groups = torch.tensor([0, 1, 0, 1])
    weights = shares(torch.tensor([0.0, 5.0, math.log(3), 5.0]), groups)
    assert_close(weights, torch.tensor([0.25, 0.5, 0.75, 0.5], dtype=torch.float64))
    assert effective_share(torch.tensor([1.0, 0.0, 0.0, 0.0])) == 0.25


def steered(sampler, reward, n=64, **options):
    denoiser = MIX.denoiser(fl.schedules.EDM(0.02, 30.0))
    options = {"steps": 12, **options}
    return draw(denoiser, sampler, n=n, rewards={"reward": reward}, **options)


@pytest.mark.parametrize("potential", ["max", "difference", "sum", "plain"])
def test_one_particle_is_the_sampler(potential):
    text = f"steering(potential='{potential}', every=2, start=0)"
    one = steered(text, lambda x: x[:, 0], n=1)
    assert torch.equal(one.x, steered("ddpm", None, n=1).x)


def test_without_strength_samples_are_drawn_from_the_same_law():
    """Adaptive weights stay equal, so that nothing is drawn anew before the last step."""
    out = steered("steering(l=0.0, adaptive=True, every=2, start=0)", lambda x: x[:, 0], n=2000)
    plain = steered("ddpm", None, n=2000)
    assert set(out.x.flatten().tolist()) <= set(plain.x.flatten().tolist())
    assert abs(out.x.mean() - plain.x.mean()) < 0.1  # 4 standard errors


def test_steering_tilts_towards_the_reward_at_no_cost():
    text = "steering(l=1.0, potential='difference', every=10, start=10)"
    options = {"steps": 50, "spacing": "exponential"}
    out = steered(text, lambda x: x[:, 0], n=3000, **options)
    plain = steered("ddpm", None, n=3000, **options).x
    target = (plain * plain.exp()).sum() / plain.exp().sum()  # the chain's own tilted mean
    assert abs(out.x.mean() - target) < 0.16  # 3 standard errors: 0.035 of the target, 0.04 here
    assert plain.mean() < 0 < target
    assert out.nfe.unique().tolist() == [50]


@pytest.mark.parametrize("potential", ["max", "difference", "sum", "plain"])
def test_a_reward_that_is_no_number_is_never_chosen(potential):
    text = f"steering(potential='{potential}', every=4, start=0, l=1.0)"
    plain = steered("ddpm", None).x
    assert (plain > 0.5).any()
    out = steered(text, lambda x: torch.where(x[:, 0] < 0.5, x[:, 0], math.nan))
    assert (out.x < 0.5).all()
    huge = steered(text, lambda x: 1e30 * (x[:, 0] > 0))  # weights end at 1e10
    assert huge.x.isfinite().all()


def test_the_best_of_many_proposals():
    plain = steered("ddpm", None)
    assert torch.equal(steered("svdd(m=1)", lambda x: x[:, 0]).x, plain.x)
    best = steered("svdd(m=8)", lambda x: x[:, 0])
    soft = steered("svdd(m=8, lam=0.5)", lambda x: x[:, 0])
    free = steered("svdd(m=8, lam=inf)", lambda x: x[:, 0], n=2000)
    assert best.x.mean() > soft.x.mean() > plain.x.mean()
    assert abs(free.x.mean() + 0.2) < 0.12  # 4 standard errors of the sampler's own mean
    # one call starts, then the winner's prediction starts the next step
    assert best.nfe.unique().tolist() == [1 + 8 * 11]


def test_the_soft_value_itself_takes_the_place_of_the_reward():
    """With one step the kept proposals have the law `p(x_t | x_s) exp(v)`, here a normal."""
    levels = (fl.schedules.Level(2.0, 1.0, 2.0), fl.schedules.Level(1.0, 1.0, 1.0))
    end = fl.schedules.Level(0.0, 1.0, 0.0)
    denoiser = PAIR.denoiser(OnLevels(levels=(*levels, end)))
    n, seen = 4000, []
    minus = fl.energy.Function(lambda x, level: -3 * level.sigma * x[:, 0], "tilt", noisy=True)
    sampler = "svdd('tilt', m=64, lam=2.0, value='given')"
    out = draw(
        denoiser, sampler, n=n, steps=2, x=torch.ones(n, 1), energies={"tilt": minus},
        callback=lambda step: seen.append(step.x),
    )  # fmt: skip
    # DDPM from sigma 2 to 1: variance 1 * (4 - 1) / 4, D = x / 5; a tilt by 1.5 moves by 1.5 var
    mean, variance = 0.2 + (1 - 0.2) / 4, 0.75
    moved = mean + 1.5 * variance
    # 3 standard errors are 0.04; 64 proposals fall short by about exp(1.5^2 var) / 64 of the way
    assert abs(seen[0].mean().item() - moved) < 0.04 + 1.5 * variance * 5.4 / 64
    assert out.nfe.unique().tolist() == [2]
    with pytest.raises(ValueError, match="must judge noisy samples"):
        draw(denoiser, sampler, steps=2, energies={"tilt": lambda x: x[:, 0]})
    with pytest.raises(ValueError, match="asks for the energy 'tilt'"):
        draw(denoiser, sampler, steps=2)


def test_equal_proposals_are_refused():
    with pytest.raises(ValueError, match=r"svdd: sampler must add noise.*ddim"):
        steered("svdd(m=2, sampler='ddim')", lambda x: x[:, 0])


@pytest.mark.parametrize("name", ["steering", "svdd"])
def test_bad_rewards_are_named(name):
    denoiser = MIX.denoiser(fl.schedules.EDM())
    with pytest.raises(ValueError, match=r"sampler: there is no reward 'reward': pass rewards="):
        draw(denoiser, name)
    with pytest.raises(ValueError, match=r"did you mean 'rewards'"):
        draw(denoiser, name, rewards={"rewards": lambda x: x[:, 0]})
    text = f"{name}(every=1, start=0)" if name == "steering" else name
    with pytest.raises(ValueError, match=r"reward 'reward': .* \(64,\), got \(64, 1\) at step"):
        draw(denoiser, text, rewards={"reward": lambda x: x})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.samplers.Steering(potential="mean"), "potential must be one of max"),
        (lambda: fl.samplers.Steering(every=0), "steering: every must be"),
        (lambda: fl.samplers.SVDD(sampler="svdd"), "must be a plain solver"),
        (lambda: fl.samplers.SVDD(sampler="dpm"), "unknown name 'dpm'"),
        (lambda: fl.samplers.SVDD(lam=-1.0), "svdd: lam must be"),
        (lambda: fl.samplers.SVDD(value="exact"), "svdd: value must be one of mean, given"),
        (lambda: fl.samplers.FeynmanKac(2.0), "feynman_kac: threshold must be"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
