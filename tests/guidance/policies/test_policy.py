"""What every policy is promised: what it is offered, who provides, and what is evaluated."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import fairlead as fl
from fairlead.guidance.algebra import Policy, Term
from fairlead.guidance.branch import COND, NULL, Branch, Point
from fairlead.testing import tiny_denoiser

C, U = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])
GIVEN = {"cond": C, "null": U, "weak": 3 * C}


@dataclass(frozen=True)
class Constant(Policy):
    """Puts a constant in the place of everything it is offered, or of some rows."""

    name: ClassVar[str] = "constant"
    value: float = 9.0
    rows: tuple[int, ...] | None = None

    def skip(self, offered, ctx):
        rows = None if self.rows is None else torch.tensor(self.rows)
        return dict.fromkeys(offered, rows)

    def fill(self, branch, predictions, ctx):
        return torch.full_like(predictions.base, self.value), f"constant {self.value:g}"


@dataclass(frozen=True)
class Greedy(Policy):
    name: ClassVar[str] = "greedy"

    def skip(self, offered, ctx):
        return {COND: None}


@dataclass(frozen=True)
class Doubled(Point):
    def __call__(self, x, predictions, ctx):
        return 2 * predictions[NULL]


@dataclass(frozen=True)
class FromNull(Term):
    """A term whose branch needs the null branch."""

    name: ClassVar[str] = "from_null"
    strength: ClassVar[float] = 1.0
    negative: ClassVar[Branch] = Branch("weak", needs=(NULL,), point=Doubled())


def step(guide, run=None, **given):
    run = run or fl.Run(check=False)
    return fl.combine(guide, {**GIVEN, **given}, run=run), run.report.entries[-1].provenance


def test_substitutes_stand_in_the_combination_and_carry_provenance():
    out, provenance = step(fl.CFG(3.0) | Constant())
    assert torch.equal(out, 9.0 + 3 * (C - 9.0))
    assert provenance == {"cond": "evaluated", "null": "constant 9"}


def test_what_is_provided_need_not_be_given():
    run = fl.Run(check=False)
    out = fl.combine(fl.CFG(3.0) | Constant(), {"cond": C}, run=run)
    assert torch.equal(out, 9.0 + 3 * (C - 9.0))


def test_a_policy_serves_the_terms_before_it_alone():
    out, provenance = step((fl.CFG(3.0) | Constant()) + fl.Autoguidance(2.0))
    assert torch.equal(out, C + 2 * (C - 9.0) + (C - 3 * C))
    assert provenance == {"cond": "evaluated", "null": "constant 9", "weak": "evaluated"}


def test_a_branch_that_another_term_wants_is_evaluated():
    _, provenance = step((fl.CFG(3.0) | Constant()) + fl.CFG(2.0))
    assert provenance == {"cond": "evaluated", "null": "evaluated"}


def test_the_nearest_policy_provides():
    out, provenance = step(fl.CFG(3.0) | Constant(1.0) | Constant(2.0))
    assert torch.equal(out, 1.0 + 3 * (C - 1.0))
    assert provenance["null"] == "constant 1"


def test_rows_that_are_not_provided_are_evaluated():
    out, _ = step(fl.CFG(3.0) | Constant(rows=(1,)))
    assert torch.equal(out, torch.tensor([[3.0], [9.0 + 3 * (2.0 - 9.0)]]))
    denoiser = tiny_denoiser()
    drawn = fl.sample(
        denoiser, {"label": [1, 2]}, guide=fl.CFG(3.0) | Constant(rows=(1,)), steps=2,
        sampler="ddim",
    )  # fmt: skip
    assert drawn.nfe.tolist() == [4, 2]
    assert denoiser.network.rows == 6


def test_rows_whose_weight_is_zero_are_neither_provided_nor_evaluated():
    drawn = fl.sample(
        tiny_denoiser(), {"label": [1, 2, 3]}, steps=1, sampler="ddim",
        guide=fl.CFG((1.0, 3.0, 3.0)) | Constant(rows=(2,)),
    )  # fmt: skip
    assert drawn.nfe.tolist() == [1, 2, 1]


def test_what_an_evaluated_branch_needs_is_evaluated():
    guide = (fl.CFG(3.0) | Constant()) + FromNull()
    drawn = fl.sample(tiny_denoiser(), {"label": [1]}, guide=guide, steps=1)
    (entry,) = drawn.report.entries
    assert entry.provenance == {"cond": "evaluated", "null": "evaluated", "weak": "evaluated"}
    assert drawn.nfe.tolist() == [3]


def test_what_only_a_skipped_branch_needs_is_not_evaluated():
    drawn = fl.sample(tiny_denoiser(), {"label": [1]}, guide=FromNull() | Constant(), steps=1)
    assert drawn.nfe.tolist() == [1]


def test_unconditional_sampling_leaves_nothing_to_stand_on():
    _, provenance = step(fl.CFG(0.0) | Constant())
    assert provenance == {"null": "evaluated"}


def test_the_base_is_never_offered_and_may_not_be_skipped():
    with pytest.raises(ValueError, match="a policy may not skip the base branch 'cond'"):
        step(fl.CFG(3.0) | Greedy())


def test_rules_see_substitutes():
    out, _ = step(fl.CFG(3.0) | Constant() | fl.Threshold())
    plain = fl.combine(fl.CFG(3.0) | fl.Threshold(), {"cond": C, "null": 0 * C + 9.0})
    assert torch.equal(out, plain)


def test_a_policy_may_refuse_guides_and_runs():
    @dataclass(frozen=True)
    class Picky(Policy):
        name: ClassVar[str] = "picky"

        def admit(self, guide):
            if len(list(guide.nodes())) > 1:
                raise ValueError("picky: one term alone")

        def check(self, denoiser, run):
            if run.steps < 3:
                raise ValueError("picky: at least 3 steps")

    with pytest.raises(ValueError, match="picky: one term alone"):
        fl.CFG(2.0) + fl.CFG(3.0) | Picky()
    with pytest.raises(ValueError, match="picky: at least 3 steps"):
        fl.sample(tiny_denoiser(), {"label": [1]}, guide=fl.CFG(2.0) | Picky(), steps=2)


def test_reference_has_the_shape_of_the_samples():
    d = tiny_denoiser()
    with pytest.raises(ValueError, match=r"sample: reference must have the shape .* got \(8, 8\)"):
        fl.sample(d, {"label": [1, 2]}, reference=torch.zeros(8, 8))


def test_history_is_dropped_on_request():
    run = fl.Run()
    run.memory["solver"] = 1
    run.drop_history()
    assert run.memory == {}
