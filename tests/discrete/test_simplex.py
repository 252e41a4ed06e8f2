"""Flows on the simplex and Bayesian flows: closed forms, and laws of many samples."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.discrete import BayesianFlow, Dirichlet, Masked, TokenDenoiser
from fairlead.discrete.simplex import coefficient

C, U = torch.tensor([0.7, 0.1, 0.1, 0.1]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double()


def one_token(process):
    """One token with the laws of the catalogue's check; class 1 makes the mixture `U`."""
    other = (U - 0.5 * C) / 0.5
    table = fl.exact.TokenTable(torch.stack([C, other]), torch.tensor([0.5, 0.5]))
    return table, table.denoiser(process)


def test_coefficient_moves_the_path():
    # along u(x | e_1) a sample of Dir(al) becomes one of Dir(al + d): compare first moments
    g = torch.Generator().manual_seed(0)
    al, d, size = 3.0, 0.02, 4
    concentration = torch.ones(200_000, size, dtype=torch.float64)
    concentration[:, 0] = al
    x = torch._standard_gamma(concentration, g)
    x = x / x.sum(1, keepdim=True)
    e = torch.eye(size).double()[0]
    moved = x + d * coefficient(x[:, :1], al, size) * (e - x)
    for power in (1, 2):
        before, after = (v[:, 0].pow(power).mean().item() for v in (x, moved))

        def moment(a, power=power):
            return math.prod((a + i) / (a + size - 1 + i) for i in range(power))

        assert after - before == pytest.approx(moment(al + d) - moment(al), rel=0.03)


def test_guided_flow_has_the_published_law():
    process = Dirichlet(4)
    _, d = one_token(process)
    published = {
        1.0: ("linear", [0.693, 0.102, 0.104, 0.102]),
        2.0: ("linear", [0.870, 0.023, 0.035, 0.072]),
        -2.0: ("score", [0.877, 0.021, 0.033, 0.069]),
    }
    for key, (form, expected) in published.items():
        out = fl.discrete.sample(
            d,
            {"label": 0},
            guide=f"cfg({abs(key)})",
            sampler=f"dirichlet(form='{form}')",
            steps=100,
            n=2000,
            record=False,
        )
        shares = torch.bincount(out.x[:, 0], minlength=4) / 2000
        # four deviations of two samples, of 2000 here and 10,000 there
        assert_close(shares, torch.tensor(expected), rtol=0, atol=0.045)


def test_classifier_on_the_simplex_is_predictor_free_guidance():
    process = Dirichlet(4)
    table, d = one_token(process)
    z = process.draw((5, 1), torch.Generator().manual_seed(0))
    level = process.level(0.4)
    c, u = (d(z, level, {"label": torch.full((5,), k)}) for k in (0, 2))
    run = fl.Run(energies={"classifier": table.classifier(process)}, record=False)
    for w in (1.0, 2.5):
        model = fl.discrete.sampling.prepare(
            d,
            {"cond": fl.Condition({"label": torch.full((5,), 2)})},
            fl.guide(f"dcbg('classifier', {w})"),
            fl.discrete.DirichletFlow(),
            run,
        )
        model.begin(level)
        # networks are given their time in float32
        assert_close(model(z, level).denoise, u + w * (c - u), rtol=1e-5, atol=1e-7)


def test_accuracy_schedule():
    process = BayesianFlow(5)
    assert process.beta(1.0) == pytest.approx(0)
    assert process.beta(0.0) == pytest.approx(20.4054 / 5)
    grid = process.grid(7)
    steps = [process.beta(b.t) - process.beta(a.t) for a, b in pairwise(grid)]
    assert sum(steps) == pytest.approx(20.4054 / 5)
    assert min(steps) > 0


def test_bayesian_flow_draws_the_conditional_and_argmax_does_not():
    g = torch.Generator().manual_seed(0)
    joint = torch._standard_gamma(torch.full((27,), 0.7), g).double().reshape(3, 3, 3)
    joint = joint / joint.sum()
    table = fl.exact.TokenTable(joint[None], torch.ones(1))
    d = table.denoiser(BayesianFlow(3))
    gaps = {}
    for receiver in ("draw", "argmax"):
        out = fl.discrete.sample(
            d, {"label": 0}, sampler=f"bfn('{receiver}')", steps=60, n=1500, record=False
        )
        index = (out.x * torch.tensor([9, 3, 1])).sum(1)
        shares = torch.bincount(index, minlength=27).double() / 1500
        gaps[receiver] = (shares - table.laws[0]).abs().sum().item() / 2
    assert gaps["draw"] < 0.075  # 27 cells, 1500 samples: about 0.045 by chance
    assert gaps["argmax"] > gaps["draw"] + 0.03


def test_training_corruption_has_the_laws_of_the_paths():
    g = torch.Generator().manual_seed(0)
    x, t = torch.full((1, 50_000), 1), torch.tensor([0.5])
    z = Dirichlet(3).corrupt(x, t, g)
    al = 1 + 0.5 * 7
    assert_close(z[0].mean(0)[1].item(), al / (al + 2), rtol=0.01, atol=0)
    theta = BayesianFlow(3).corrupt(x, t, g)
    assert_close(theta.sum(-1), torch.ones(1, 50_000).double())
    assert theta[0, :, 1].mean() > 1 / 3


def test_samplers_ask_for_their_process():
    d = TokenDenoiser(lambda z, t: torch.zeros(*z.shape, 3), Masked(3), length=2)
    with pytest.raises(ValueError, match="needs a Dirichlet process, not masked"):
        fl.discrete.sample(d, sampler="dirichlet")
    with pytest.raises(ValueError, match="needs a BayesianFlow process, not masked"):
        fl.discrete.sample(d, sampler="bfn")
    with pytest.raises(ValueError, match=r"top must be in \(1, inf\), got 1"):
        Dirichlet(3, top=1)
