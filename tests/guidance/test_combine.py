"""`fl.combine`: guidance on predictions that people bring themselves."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.schedules import EDM

C, U = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, -2.0]])
BOTH = {"cond": C, "null": U}


def test_text_or_guide():
    assert torch.equal(fl.combine("cfg(3)", BOTH), torch.tensor([[5.0, 4.0]]))
    assert torch.equal(fl.combine(fl.CFG(3.0), BOTH), fl.combine("cfg(3)", BOTH))


def test_low_precision_is_combined_in_float32():
    halves = {k: v.bfloat16() for k, v in BOTH.items()}
    out = fl.combine("cfg(3.3)", halves)
    assert out.dtype == torch.float32
    assert_close(out, fl.combine("cfg(3.3)", BOTH), rtol=0, atol=0)
    assert fl.combine("cfg(3)", {k: v.double() for k, v in BOTH.items()}).dtype == torch.float64


def test_more_branches_than_needed_are_ignored():
    assert torch.equal(fl.combine("none", BOTH), C)
    assert torch.equal(fl.combine("cfg(3)", {**BOTH, "pag": C}), fl.combine("cfg(3)", BOTH))


def test_a_branch_without_weight_need_not_be_there():
    assert torch.equal(fl.combine("cfg(1) + pag(0)", {"cond": C}), C)
    assert torch.equal(fl.combine("cfg(0)", {"null": U}), U)


def test_progress_counts_calls_with_one_run():
    run = fl.Run(steps=3)
    outs = [fl.combine("cfg(3) | curve('linear')", BOTH, run=run) for _ in range(3)]
    assert_close(torch.cat(outs), torch.tensor([[1.0, 0.0], [5.0, 4.0], [9.0, 8.0]]))


def test_levels_by_number_tensor_or_level():
    schedule = fl.schedules.EDM()
    guide = "cfg(3) | rescale(0.7, space='epsilon')"
    given = {"x": C + U, "schedule": schedule}
    outs = [
        fl.combine(guide, BOTH, t=t, **given)
        for t in (2.0, torch.tensor(2.0), torch.tensor([2.0]), schedule.level(2.0))
    ]
    for out in outs[1:]:
        assert_close(out, outs[0])


@pytest.mark.parametrize(
    ("guide", "predictions", "options", "message"),
    [
        ("cfg(3)", {"cond": C}, {}, "asks for branch 'null', which is missing"),
        ("cfg(3)", {"cond": C, "nul": U}, {}, "did you mean 'nul'"),
        ("cfg(3)", {}, {}, "predictions are empty; give at least 'cond'"),
        ("cfg(3)", {"cond": C, "null": U[:, :1]}, {}, "predictions differ in shape"),
        ("cfg(3)", BOTH, {"t": 1.0}, "t needs the schedule"),
        ("cfg(3)", BOTH, {"domain": "logits"}, "domain must be one of continuous, logprob"),
        ("cfg(3) | interval(0, 1, unit='sigma')", BOTH, {}, "needs the noise level"),
        ("cfg(3) | adaptive()", BOTH, {}, "needs the noisy sample"),
        (
            "cfg(2) + autoguidance(2, model='w') + magic_fusion(2, model='w', state='other')",
            {**BOTH, "w": C, "w null": U},
            {"x": C, "t": 0.5, "schedule": EDM()},
            "different branches of one name, 'w'",
        ),
        ("cfg([1, 2])", BOTH, {}, "2 values were given for a batch of 1"),
    ],
)
def test_errors(guide, predictions, options, message):
    with pytest.raises(ValueError, match=message):
        fl.combine(guide, predictions, **options)


def test_non_finite_values_raise_where_the_run_checks():
    bad = {"cond": C, "null": U * float("nan")}
    assert fl.combine("cfg(3)", bad).isnan().all()
    with pytest.raises(FloatingPointError, match="branch 'null' is NaN or infinite at step 0"):
        fl.combine("cfg(3)", bad, run=fl.Run())
