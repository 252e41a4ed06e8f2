"""Typed nulls: what each puts in place, and the errors."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead import nulls
from fairlead.guidance.branch import COND, NULL, Branch
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator

POSE = torch.eye(3)


def denoiser(null, trained=None):
    net = lambda x, t, **condition: torch.zeros_like(x)  # noqa: E731
    return fl.Denoiser(net, fl.schedules.EDM(), "sample", null=null, shape=(3,), trained=trained)


def given(batch=2):
    return fl.Condition(
        {
            "text": torch.ones(batch, 4),
            "mask": torch.ones(batch, 4),
            "camera": torch.full((batch, 3, 3), 5.0),
            "history": torch.ones(batch, 2, 3),
            "history_level": torch.zeros(batch, 2),
            "face": torch.ones(batch, 2),
        }
    )


NULLS = {
    "text": nulls.removed("mask", 7.0),
    "camera": nulls.static(POSE),
    "history": nulls.noise(history_level=1.0),
    "face": nulls.kept(),
}


def test_each_kind_puts_its_value_in_place():
    out = denoiser(NULLS).null_condition(given())
    assert_close(out["text"], torch.full((2, 4), 7.0))
    assert_close(out["mask"], torch.zeros(2, 4))
    assert_close(out["camera"], POSE.expand(2, 3, 3))
    assert_close(out["history_level"], torch.ones(2, 2))
    assert_close(out["face"], torch.ones(2, 2))
    assert not torch.equal(out["history"], torch.ones(2, 2, 3))


@pytest.mark.parametrize(
    ("null", "value"),
    [
        (nulls.zeros(), 0.0),
        (nulls.learned(3.0), 3.0),
        (nulls.empty_prompt(torch.full((4,), 2.0)), 2.0),
        (nulls.mask_token(lambda batch: torch.full((batch, 4), 4.0)), 4.0),
        (9.0, 9.0),
    ],
)
def test_values_for_one_sample_or_a_batch(null, value):
    out = denoiser({"text": null}).null_condition(given(), ["text"])
    assert_close(out["text"], torch.full((2, 4), value))


def test_noise_is_fixed_by_seed_and_sample_not_by_step_or_batch():
    d, run = denoiser(NULLS), Run(seed=3, indices=range(2))
    states = {"cond": given()}
    first = Evaluator(d, states).check(NULL, run)["history"]
    run.advance()
    assert torch.equal(first, Evaluator(d, states).check(NULL, run)["history"])
    alone = Evaluator(d, {"cond": given(1)}).check(NULL, Run(seed=3, indices=[1]))["history"]
    assert torch.equal(first[1:], alone)
    other = Evaluator(d, states).check(NULL, Run(seed=4, indices=range(2)))["history"]
    assert not torch.equal(first, other)


def test_a_null_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"null of 'camera' has shape \(2, 2\)"):
        denoiser({"camera": nulls.static(torch.eye(2))}).null_condition(given(), ["camera"])
    with pytest.raises(ValueError, match="sets 'level', which is no condition here"):
        denoiser({"history": nulls.noise(level=1.0)}).null_condition(given(), ["history"])
    with pytest.raises(ValueError, match="no null for 'text'"):
        denoiser({}).null_condition(given(), ["text"])


def test_companions_are_no_conditions_of_their_own():
    d = denoiser(NULLS)
    assert d.companions == {"mask", "history_level"}
    known = Evaluator(d, {"cond": given()}).conditions
    assert known == {"text", "camera", "history", "face"}
    assert Branch("none", nulled=("camera", "face", "history", "text")).among(known) == NULL


def test_states_have_names_for_what_was_trained():
    d = denoiser(NULLS, trained=["cond", "null", "text+camera"])
    everything = ("camera", "history", "text")
    assert d.state((), given()) == "cond"
    assert d.state(everything, given()) == "face"
    assert d.state((*everything, "face"), given()) == "null"
    assert d.state(("history", "face"), given()) == "camera+text"
    assert d.trained == {"cond", "null", "camera+text"}


def test_untrained_state_warns_once_by_name(recwarn):
    p = fl.exact.LabelledMixture([[0.0], [1.0]], 0.1, {"a": [0, 1], "b": [0, 1]})
    d = p.denoiser(fl.schedules.EDM())
    d.trained = frozenset({"cond", "null", "a"})
    asked = {"a": [0], "b": [0]}
    terms = [[1.5, "a", "none"], [3.0, "a+b", "a"]]
    fl.sample(d, asked, guide=fl.Multi(["a", "b"], terms, "none"), steps=4)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="not trained on the condition state 'b'") as warned:
        fl.sample(d, asked, guide=fl.Multi(["a", "b"], [[1.5, "b", "none"]], "none"), steps=4)
    assert len(warned) == 1


def test_other_states_keep_what_they_do_not_name():
    p = fl.exact.LabelledMixture([[0.0], [1.0]], 0.1, {"a": [0, 1], "b": [0, 1]})
    d = p.denoiser(fl.schedules.EDM())
    guide = "cfg(2, against='negative')"
    options = {"guide": guide, "steps": 4, "shape": (1, 1)}
    short = fl.sample(d, {"a": [0], "b": [0]}, negative={"b": [-1]}, **options)
    whole = fl.sample(d, {"a": [0], "b": [0]}, negative={"a": [0], "b": [-1]}, **options)
    assert torch.equal(short.x, whole.x)
    assert COND.whole
    assert not NULL.whole


def test_a_null_through_an_adapter_is_the_adapters():
    torch.manual_seed(0)
    adapter = torch.nn.Linear(5, 4)
    zeros = nulls.mapped(adapter, torch.zeros(5))
    made = zeros("text", given(), nulls.by_place)["text"]
    assert torch.equal(made, adapter(torch.zeros(2, 5)))
    with torch.no_grad():
        adapter.bias += 1  # training goes on: the null follows
    again = zeros("text", given(), nulls.by_place)["text"]
    assert_close(again, made + 1)

    d = denoiser({"text": zeros})
    null = d.null_condition(fl.Condition({"text": torch.ones(2, 4)}), ["text"])
    assert_close(null["text"], adapter.bias.expand(2, 4))
