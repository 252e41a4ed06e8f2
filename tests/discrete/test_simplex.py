"""Flows on the simplex and Bayesian flows: closed forms, and laws of many samples."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


def matrix(x, al):
    """What makes the score of a point of the simplex, in its tangent space, from p(x | z)."""
    m = (al - 1) * torch.diag(1 / x)
    return m - m.mean(0, keepdim=True)


def solved(x, al, score):
    """The probabilities whose score this is; the last row says that they add up to 1."""
    m = matrix(x, al)
    m[-1], score = 1.0, score.clone()
    score[-1] = 1.0
    return torch.linalg.solve(m, score)


@given(st.integers(2, 6), st.floats(1.5, 8), st.floats(-1, 5), st.integers(0, 10**6))
def test_combining_scores_is_combining_probabilities(k, al, w, seed):
    g = torch.Generator().manual_seed(seed)
    x, c, u = (torch.rand(3, k, generator=g, dtype=torch.float64) + 0.05).unbind()
    x, c, u = (v / v.sum() for v in (x, c, u))
    m = matrix(x, al)
    both = solved(x, al, w * m @ c + (1 - w) * m @ u)
    linear = w * c + (1 - w) * u
    assert_close(both, linear, rtol=1e-8, atol=1e-8)

    def flow(p):
        v = p * coefficient(x, al, k)
        return v - x * v.sum()

    assert_close(flow(both), flow(u) + w * (flow(c) - flow(u)), rtol=1e-6, atol=1e-8)


class Sloped(fl.energy.Energy):
    """An energy of points of the simplex with a gradient of its own at each sample."""

    noisy, name = True, "classifier"
    slope = torch.tensor([0.3, -1.1, 0.2, 0.9]).double()

    def __call__(self, z, level=None):
        return -(z * self.slope).sum((1, 2))


@pytest.mark.parametrize("rescale", [False, True])
def test_classifier_on_the_simplex_solves_for_the_score(rescale):
    process, w = Dirichlet(4), 1.7
    _, d = one_token(process)
    z = process.draw((3, 1), torch.Generator().manual_seed(2))
    level = process.level(0.4)
    run = fl.Run(energies={"classifier": Sloped()}, record=False)
    model = fl.discrete.sampling.prepare(
        d,
        {"cond": fl.Condition({"label": torch.full((3,), 2)})},
        fl.guide(f"dcbg('classifier', {w}, rescale={rescale})"),
        fl.discrete.DirichletFlow(),
        run,
    )
    model.begin(level)
    out, al = model(z, level).denoise, process.concentration(0.4)
    plain = d(z, level, {"label": torch.full((3,), 2)})
    for row in range(3):
        x, u = z[row, 0], plain[row, 0]
        score, gradient = matrix(x, al) @ u, Sloped.slope - Sloped.slope.mean()
        if rescale:
            gradient = gradient * score.norm() / gradient.norm()
        one = solved(x, al, score + gradient)
        assert_close(out[row, 0], u + w * (one - u), rtol=1e-5, atol=1e-6)  # float32 time
        assert_close(solved(x, al, score + w * gradient), u + w * (one - u))


def test_training_times_are_exponential_in_the_concentration():
    process = Dirichlet(4)
    t = process.training_times(100_000, torch.Generator().manual_seed(0))
    al = process.network_time(t)
    assert al.min() >= 1
    assert (al - 1).mean().item() == pytest.approx(2, rel=0.02)
    assert (al > 1 + 2 * math.log(4)).float().mean().item() == pytest.approx(0.25, abs=0.01)
    z = process.draw((2, 3), torch.Generator().manual_seed(0))
    made = process.features(z, torch.tensor([1.0, 3.0]))
    assert_close(made[0], torch.cat([0 * z[0], z[0]], -1))  # q = 1 at the start
    assert_close(made[1], torch.cat([z[1], z[1]], -1) / 2)  # q = 2 / 4


def test_rate_is_the_slope_of_the_accuracy():
    process, h = BayesianFlow(5), 1e-6
    for t in (0.0, 0.3, 0.9):
        slope = (process.beta(t - h) - process.beta(t + h)) / (2 * h)
        assert process.rate(torch.tensor(t).double()).item() == pytest.approx(slope, rel=1e-5)
    logits = torch.tensor([[[0.0, math.log(3.0)]]])  # p = (1/4, 3/4)
    loss = BayesianFlow(2).loss(logits, torch.tensor([[1]]), logits, torch.tensor([0.5]))
    expected = BayesianFlow(2).rate(torch.tensor([0.5])) * 2 * 0.25**2
    assert_close(loss[0], expected)


def test_certain_beliefs_are_filled_in_around():
    table = fl.exact.golden_tokens()
    d = table.denoiser(BayesianFlow(2))
    z = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    out = fl.discrete.sample(d, {"label": 0}, sampler="bfn", steps=40, n=3000, z=z, record=False)
    assert (out.x[:, 0] == 1).all()
    law = table.laws[0].reshape(2, 2)[1]
    # three standard deviations, and the error of 40 steps
    assert out.x[:, 1].double().mean().item() == pytest.approx(
        (law[1] / law.sum()).item(), abs=0.04
    )


def test_student_starts_where_its_teacher_does():
    process = Dirichlet(4)
    _, teacher = one_token(process)
    told = {"guide": "cfg(2)", "steps": 20}
    seen = []

    def net(z, t, label):
        """A student without error: it asks the teacher."""
        seen.append(t)
        out = fl.discrete.sample(
            teacher, {"label": label}, sampler="dirichlet", z=z.double(), record=False, **told
        )
        return 50 * torch.nn.functional.one_hot(out.x, 4).float()

    student = TokenDenoiser(net, process, {"label": 2}, length=1)
    condition = {"label": [0, 1, 0, 1, 0]}
    mine = fl.discrete.sample(student, condition, sampler="distilled", steps=1, seed=3)
    theirs = fl.discrete.sample(teacher, condition, sampler="dirichlet", seed=3, **told)
    assert torch.equal(mine.x, theirs.x)
    assert mine.nfe.tolist() == [1] * 5
    assert all((t == 0).all() for t in seen)
    made = fl.discrete.pairs(teacher, condition, n=5, seed=3, **told)
    assert torch.equal(made.answer, theirs.x)
    assert_close(fl.discrete.distillation_loss(student, made), torch.zeros(5, 1).double())
    late = fl.discrete.pairs(teacher, {"label": [0, 1]}, n=2, seed=3, first=3, **told)
    assert torch.equal(late.start, made.start[3:])  # a pair belongs to its index
    half = made.rows(torch.tensor([4, 1]))
    assert torch.equal(half.condition["label"], torch.tensor([0, 1]))
    assert len(half) == 2


def test_distillation_loss_by_hand():
    process = Dirichlet(2)
    student = TokenDenoiser(lambda z, t: 3 * z, process, length=1)
    start = torch.tensor([[[0.25, 0.75]]]).double()
    some = fl.discrete.Pairs(start, torch.tensor([[0]]), {})
    expected = math.log(1 + math.exp(3 * 0.5))
    assert fl.discrete.distillation_loss(student, some).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "distilled", "steps": 2}, "distilled: steps must be 1, got 2"),
        ({"z": torch.zeros(1).long()}, r"z must hold points of the simplex, \(..., L, 4\)"),
        ({"z": torch.full((1, 4), 0.3)}, "that add up to 1"),
    ],
)
def test_errors(options, message):
    _, d = one_token(Dirichlet(4))
    with pytest.raises(ValueError, match=message):
        fl.discrete.sample(d, {"label": 0}, **{"sampler": "dirichlet", "steps": 1, **options})


def test_distillation_asks_for_a_flow():
    d = TokenDenoiser(lambda z, t: torch.zeros(*z.shape, 3), Masked(3), length=2)
    with pytest.raises(ValueError, match="pairs: needs a Dirichlet process, not masked"):
        fl.discrete.pairs(d, n=1)
    with pytest.raises(ValueError, match="distilled: needs a Dirichlet process, not masked"):
        fl.discrete.sample(d, sampler="distilled", steps=1)
