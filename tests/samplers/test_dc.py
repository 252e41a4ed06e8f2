"""DC-Solver: Lagrange by hand, UniPC in the limit, the search, and the polynomial."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.samplers import DC, Prediction, RatioModel, UniPC, get
from fairlead.samplers.unipc import Point
from fairlead.schedules import VP, Level

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def points(*pairs):
    """Newest first; levels whose `lam` is given, and predictions."""
    made = []
    for lam, value in pairs:
        alpha = (1 / (1 + torch.tensor(-2.0 * lam).double().exp())).sqrt().item()
        p = torch.tensor([value]).double()
        made.append(Point(Level(-lam, alpha, (1 - alpha**2) ** 0.5), Prediction(p, 2 * p)))
    return made


def moved(solver, ratio, *pairs):
    new, *older = solver.compensated(points(*pairs), ratio)
    assert [p.p.denoise.item() for p in older] == [v for _, v in pairs[1:]]
    assert_close(new.p.renoise, 2 * new.p.denoise)
    return new.p.denoise.item()


def test_a_parabola_is_followed_exactly():
    def parabola(u):
        return 3 + 2 * u - u**2

    pairs = [(u, parabola(u)) for u in (2.0, 1.0, -1.0)]
    for ratio in (-0.5, 0.0, 0.5, 1.0, 1.5):
        assert moved(DC(), ratio, *pairs) == pytest.approx(parabola(1 + ratio), abs=1e-9)


def test_a_line_through_two_by_hand():
    assert moved(DC(compensation=1), 1.5, (2.0, 10.0), (1.0, 4.0)) == pytest.approx(13.0)
    # between two points t falls as lam grows, evenly in `points`
    assert moved(DC(compensation=1, variable="t"), 1.5, (2.0, 10.0), (1.0, 4.0)) == pytest.approx(
        13.0
    )
    sigmas = [p.level.sigma for p in points((2.0, 0.0), (1.0, 0.0))]
    assert moved(
        DC(compensation=1, variable="sigma"), 0.0, (2.0, 10.0), (1.0, 4.0)
    ) == pytest.approx(4.0)
    assert sigmas[0] < sigmas[1]


def test_too_few_or_infinite_points_are_left():
    few = points((2.0, 1.0), (1.0, 5.0))
    assert DC().compensated(few, 0.5) == few
    pure = [*few, Point(Level(1.0, 0.0, 1.0), few[0].p)]
    assert DC().compensated(pure, 0.5) == pure
    assert DC(variable="sigma").compensated(pure, 0.5) != pure


def test_ratios_of_one_are_unipc_to_the_bit(lab, schedule):
    levels = schedule.grid(8)
    x = levels[0].sigma * lab.z
    for order in (2, 3):
        a, b = (
            lab.drive(s, lab.data, levels, x, schedule)
            for s in (UniPC(order), DC(order, ratios=[1.0] * 6, compensation=4))
        )
        assert torch.equal(a, b)


def test_a_constant_prediction_is_solved_exactly_for_every_ratio(lab, schedule):
    levels = schedule.grid(7)
    x, d = levels[0].sigma * lab.z, torch.ones_like(lab.z)
    a, b = (
        lab.drive(s, lambda x, level: d, levels, x, schedule)
        for s in ("ddim", DC(ratios=[0.3, 1.4, -0.2, 1.1, 0.9]))
    )
    assert_close(a, b, **EXACT)


def test_a_ratio_of_zero_puts_the_last_prediction_in_its_place(lab):
    """With no corrector and order 2 the step is then of first order, from the old prediction."""
    levels = VP().grid(4, final="t_min")
    solver = DC(corrector=False, lower_order_final=False, ratios=[0.0])
    x, model = lab.drive(solver, lab.data, levels[:4], levels[0].sigma * lab.z, VP(), whole=True)
    plain = UniPC(corrector=False, lower_order_final=False)
    before = lab.drive(plain, lab.data, levels[:3], levels[0].sigma * lab.z, VP())
    taken = lab.drive(plain, lab.data, levels[:2], levels[0].sigma * lab.z, VP())
    old = lab.data(taken, levels[1])
    s, t = levels[2], levels[3]
    assert_close(x, t.alpha * old + t.sigma * (before - s.alpha * old) / s.sigma, **EXACT)
    assert len(model.calls) == 3


def test_the_replacement_stays_for_later_steps(lab):
    levels = VP().grid(6, final="t_min")
    x = levels[0].sigma * lab.z
    runs = [
        lab.drive(DC(ratios=r), lab.data, levels[:5], x, VP()) for r in ([0.5], [0.5, 1.0], [1.0])
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2], atol=1e-6)
    _, model = lab.drive(DC(ratios=[0.5]), lab.data, levels[:5], x, VP(), whole=True)
    kept = model.memory["unipc"].points
    assert len(kept) == 3
    level = levels[2]
    assert kept[1].level == level
    # what was kept for step 2 is no prediction of the model at the point that was reached
    seen = lab.drive(DC(ratios=[0.5]), lab.data, levels[:3], x, VP())
    assert not torch.allclose(kept[1].p.denoise, lab.data(seen, level), atol=1e-6)


def mixture():
    means = [[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]]
    return fl.exact.GaussianMixture(means, 0.16, labels=[0, 1, 2, 3])


def test_search_comes_nearer_to_the_fine_trajectory():
    d = mixture().denoiser(VP())
    options = {"steps": 6, "dtype": torch.float64}
    label = {"label": torch.zeros(10, dtype=torch.long)}
    solver = fl.search_ratios(d, label, guide="cfg(5)", iterations=15, **options)
    assert len(solver.ratios) == 4
    fine = fl.sample(d, label, guide="cfg(5)", sampler="ddim", **{**options, "steps": 400}).x
    found, plain = (
        fl.sample(d, label, guide="cfg(5)", sampler=s, **options) for s in (solver, "unipc")
    )
    assert torch.equal(found.nfe, plain.nfe)
    assert (found.x - fine).square().mean() < 0.5 * (plain.x - fine).square().mean()
    again = fl.search_ratios(d, label, guide="cfg(5)", iterations=15, **options)
    assert again == solver
    bounded = fl.search_ratios(d, label, guide="cfg(5)", iterations=15, bounded=True, **options)
    assert all(0.5 < r < 1.5 for r in bounded.ratios)


def test_search_without_iterations_is_unipc():
    d = mixture().denoiser(VP())
    solver = fl.search_ratios(d, {"label": [0]}, guide="cfg(2)", steps=5, iterations=1)
    assert solver.ratios == (1.0, 1.0, 1.0)


def test_polynomial_by_hand_and_fit():
    phi = [0.0] * 18
    phi[8], phi[9 + 4] = 0.5, 2.0  # constant 0.5; share times scale times number of steps
    model = RatioModel(phi)
    assert model.ratios(6.0, 5) == pytest.approx(
        [0.5 + 2.0 * (s / 5) * (6 / 12) * (5 / 50) for s in (3, 4, 5)]
    )
    searched = [(w, model.ratios(w, n)) for w in (2.0, 4.0, 6.0, 8.0) for n in (5, 6, 8, 10)]
    fitted = RatioModel.fit(searched, degree=1)
    assert fitted.ratios(5.0, 7) == pytest.approx(model.ratios(5.0, 7))
    assert fitted.sampler(5.0, 7, order=3) == DC(order=3, ratios=fitted.ratios(5.0, 7))


def test_text_round_trip():
    solver = DC(order=3, ratios=[0.5, 1.25], compensation=3, variable="t")
    assert get(str(solver)) == solver
    assert get("dc(ratios=[0.5, 1.25])") == DC(ratios=(0.5, 1.25))


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="dc: variable must be one of lam, t, sigma, got 'x'"):
        DC(variable="x")
    with pytest.raises(ValueError, match=r"dc: compensation must be in \[1, inf\), got 0"):
        DC(compensation=0)
    with pytest.raises(ValueError, match=r"dc: ratios must be in"):
        DC(ratios=[float("nan")])
    with pytest.raises(ValueError, match="RatioModel: phi must be nine numbers for each power"):
        RatioModel([1.0])
    with pytest.raises(ValueError, match="RatioModel: needs at least one ratio"):
        RatioModel.fit([(2.0, ())])
    with pytest.raises(ValueError, match="search_ratios: the sampler must be dc, got ddim"):
        fl.search_ratios(mixture().denoiser(VP()), guide="cfg(2)", steps=4, sampler="ddim")
