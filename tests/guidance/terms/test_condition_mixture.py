"""Condition mixture: by hand on both sides of the switch, cost, and the errors."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.context import Run

V = {
    k: torch.tensor([[x]])
    for k, x in zip(("cond", "a", "b", "none"), (1.0, 2.0, 4.0, 8.0), strict=True)
}
SCHEDULE = fl.schedules.VP()
KIT = (0.78123, 0.39284, -0.12475)


def at(t, term, seed=0):
    place = {"x": torch.zeros(1, 1), "t": t, "schedule": SCHEDULE}
    return fl.combine(term, V, run=Run(seed), **place).item()


def test_fitted_weights_below_the_switch():
    term = fl.ConditionMixture(["a", "b"], 4.0, KIT)
    rest = 1 - sum(KIT)
    assert rest == pytest.approx(-0.04932)
    expected = KIT[0] * 1 + KIT[1] * 2 + KIT[2] * 4 + rest * 8
    assert at(0.05, term) == pytest.approx(expected, rel=1e-6)
    assert at(0.05, fl.ConditionMixture(["a", "b"], 4.0, [1.0, 0.0, 0.0])) == 1.0


def test_coin_above_the_switch():
    term, w = fl.ConditionMixture(["a", "b"], 6.5, KIT), 1 + 6.5 * 0.5
    sides = {4.0 + w * (1 - 4), 8.0 + w * (2 - 8)}
    seen = {round(at(0.5, term, seed), 4) for seed in range(20)}
    assert seen == {round(s, 4) for s in sides}
    assert {at(0.5, fl.ConditionMixture(["a", "b"], 0.0, KIT), s) for s in range(20)} == {1.0, 2.0}


def mixture():
    cells = [(i, j) for i in range(2) for j in range(2)]
    labels = {"a": [i for i, _ in cells], "b": [j for _, j in cells]}
    return fl.exact.LabelledMixture(
        [[2.0 * i - 1, 2.0 * j - 1] for i, j in cells], 0.25, labels, [0.3, 0.2, 0.2, 0.3]
    )


def test_two_evaluations_above_and_four_below():
    d = mixture().denoiser(SCHEDULE)
    out = fl.sample(
        d,
        {"a": [0, 1], "b": [1, 1]},
        guide=fl.ConditionMixture(["a", "b"], 4.0, KIT),
        steps=20,
        sampler="ddim",
        spacing="trailing",
    )
    # times 1, 0.95, ..., 0.05: 18 above 0.1, two at or below it
    assert out.nfe.tolist() == [18 * 2 + 2 * 4] * 2
    states = {tuple(sorted(e.provenance)) for e in out.report.entries}
    assert states == {("b", "cond"), ("a", "none"), ("a", "b", "cond", "none")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], 1.0, KIT), "conditions must be two"),
        ((["a", "b"], -1.0, KIT), r"coarse must be in \[0, inf\), got -1.0"),
        ((["a", "b"], 1.0, (1.0, 2.0)), "fine must be three weights"),
        ((["a", "b"], 1.0, (1.0, 2.0, float("nan"))), "fine must be in"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"condition_mixture: {message}"):
        fl.ConditionMixture(*arguments)
    assert_close(V["cond"], torch.ones(1, 1))
