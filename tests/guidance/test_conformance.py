"""The public checks on every registered method, at its example and in other settings."""

from dataclasses import dataclass

import pytest

import fairlead as fl
from fairlead.guidance.algebra import REGISTRY, Range, Rule, register
from fairlead.testing import CHECKS, check_guide
from fairlead.testing.checks import outside

EXPECTED = {
    "adain": {
        "strength_zero": "it changes the attention of the base itself, at every weight",
    },
    "merge": {
        "strength_zero": "it merges tokens of the base itself, at every weight",
        "weights_per_sample": "at w = 1 beside others a sample's response is 0, alone it has none",
    },
    "nag": {
        "strength_zero": "it changes the attention of the base itself, at every weight",
    },
    "scfg": {
        "two_memories": "attention maps come from a network, not from given predictions",
        "compile": "attention maps come from a network, not from given predictions",
    },
    "layout": {
        "nfe": "it reads attention before a step, as often as it is told to",
    },
    "zero_init": {"strength_zero": "it stands still in the first step at every weight"},
    "branch_threshold": {"strength_zero": "it clips the base itself, at every weight"},
    "condition_mixture": {
        "nfe": "two evaluations while the coin decides, four where all weights count",
    },
    "cads": {
        "strength_zero": "it noises the condition of the base itself, at every weight",
    },
    "descent": {"strength_zero": "it descends also where no term acts"},
    "foreground": {
        "weights_per_sample": "the base that one sample can do without is evaluated for a batch",
    },
    "redilate": {
        "strength_zero": "it changes the network of the base itself, at every weight",
    },
    "dynamic_cfg": {
        "strength_zero": "w(t) = g(t) w is 0 early also at w = 1",
        "branch_sharing": "where w = 0 it drops the base, which another term then needs",
        "weights_per_sample": "the base that one sample can do without is evaluated for a batch",
    },
}

VARIANTS = [
    fl.CFG(0.0),
    fl.CFG(3.0, against="negative"),
    fl.CFG((2.0, 1.0, 0.5)),
    fl.ICG(3.0),
    fl.TSG(2.0, s=0.3, a=0.0),
    fl.CFGpp(1.0),
    fl.PAG(2.0, layers="down.*,mid"),
    fl.APG(eta=0.2, r=1.5, beta=-0.5, space="v_prediction"),
    fl.APG(r=2.0, beta=0.5, form="from_null"),
    fl.Rescale(0.7, space="epsilon"),
    fl.CFGZeroStar(zero_steps=0, space="sample"),
    fl.Threshold(0.9, ceiling=1.5),
    fl.Renorm(dim=1, grow=True),
    fl.Magnitude(2.0, space="epsilon"),
    fl.Tangential(space="flow_prediction"),
    fl.Frequency([1.5, 1.0, 0.5], eta=[1.0, 0.0, 0.5]),
    "cfg(4) + perp_neg(4) | magnitude(1) | threshold()",
    fl.CADS(s=0.5, psi=0.5, apply_to="both"),
    fl.BranchThreshold(0.8, floor=0.2, ceiling=2.0),
    fl.Coin(0.5, tails=True, per="sample"),
    fl.Region("left", of=("left",)),
    fl.Part(2, -2, dim=-1),
    "nested(['label', 'style'], [1.5, 3])",
    "dual(['label', 'style'], [2, 1]) | apg(r=1) | interval(0.1, 0.8)",
    "interleaved(['label', 'style'], [3, 2]) + pag(2)",
    "interleaved(['label', 'style'], [3, 2], per='sample')",
    fl.Interval(-3.0, 4.0, unit="log_snr", per="step"),
    fl.Curve("powered_cosine", power=2.0),
    fl.AdaptiveGuidance(0.3, guard=0.3),
    "cfg(4) + pag(3) | rescale(0.7) | interval(0.1, 0.8)",
    "(cfg(2) | apg(r=1, beta=-0.5)) + icg(2) + autoguidance(1.5) | cads() | adaptive(guard=0.4)",
    fl.Cache(every=2, start=0.0, low=1.2, high=0.9, compound=False, space="epsilon"),
    fl.LinearGuidance([0.2, 0.5, 0.3], end=1.0),
    fl.ResidualCFG("onetime", delta=0.9),
    fl.FeatureReuse(every=3, start=0.0, layers="mid"),
    fl.Oscillating(low=2.0, hold=0.3),
    "cfg(3) + pag(2) | cache(start=0, only=['pag']) | reuse(start=0)",
    "(cfg(3) | cache(start=0)) + autoguidance(2) | apg(r=1, beta=-0.5) | rcfg('onetime')",
]
QUICK = [name for name in CHECKS if name != "compile"]
ALLOWED = {
    fl.BranchThreshold(0.8, floor=0.2, ceiling=2.0): EXPECTED["branch_threshold"],
    "nested(['label', 'style'], [1.5, 3])": {"nfe": "two differences, and it declares one"},
    fl.CADS(s=0.5, psi=0.5, apply_to="both"): {"strength_zero": EXPECTED["cads"]["strength_zero"]},
    fl.CFG((2.0, 1.0, 0.5)): dict.fromkeys(
        ("low_precision", "batches", "memory_once_a_step", "compile", "tokens"),
        "it has weights for three samples, the check batches of one or two",
    ),
    fl.CFG(0.0): {"nfe": "one evaluation, of null, instead of two", "branch_sharing": "no cond"},
}


@pytest.mark.parametrize("name", list(REGISTRY))
def test_conforms_at_its_example(name):
    expected = {c: why for c, why in EXPECTED.get(name, {}).items() if c in QUICK}
    check_guide(REGISTRY[name], only=QUICK, expected_failures=expected)


@pytest.mark.parametrize("name", list(REGISTRY))
@pytest.mark.slow
def test_combine_is_one_graph(name):
    expected = {c: why for c, why in EXPECTED.get(name, {}).items() if c == "compile"}
    check_guide(REGISTRY[name], only=["compile"], expected_failures=expected)


@pytest.mark.parametrize("guide", VARIANTS, ids=str)
@pytest.mark.slow
def test_conforms_in_other_settings(guide):
    check_guide(guide, expected_failures=ALLOWED.get(guide))


@dataclass(frozen=True)
class Broken(Rule):
    """Keeps what it saw, in the guide."""

    def apply(self, update, predictions, ctx):
        object.__setattr__(self, "seen", update.sum().item())
        return update


@pytest.fixture
def registered():
    kept = dict(REGISTRY)
    yield register
    REGISTRY.clear()
    REGISTRY.update(kept)


def test_a_method_that_keeps_state_is_caught(registered):
    broken = registered("broken")(Broken)
    outcomes = check_guide(broken(), only=["no_traces", "text"], strict=False)
    assert [(o.check, o.status) for o in outcomes] == [("no_traces", "failed"), ("text", "passed")]
    with pytest.raises(AssertionError, match="does not conform:\nno_traces"):
        check_guide(broken(), only=["no_traces", "text"])


def test_a_method_that_lies_about_its_neutral_setting_is_caught(registered):
    @dataclass(frozen=True)
    class Doubled(Rule):
        def apply(self, update, predictions, ctx):
            return update * 2

    broken = registered("doubled", neutral="")(Doubled)
    (outcome,) = check_guide(broken(), only=["neutral"], strict=False)
    assert outcome.status == "failed"
    assert "differs from cfg(3.0)" in outcome.reason


def test_expected_failures_need_a_reason_and_must_come():
    with pytest.raises(ValueError, match="expected failure of 'text' needs a reason"):
        check_guide(fl.CFG, expected_failures={"text": " "})
    with pytest.raises(AssertionError, match="it passes, though a failure was expected: because"):
        check_guide(fl.CFG, only=["text"], expected_failures={"text": "because"})
    with pytest.raises(ValueError, match=r"check must be one of .*did you mean 'text'"):
        check_guide(fl.CFG, only=["txet"])


def test_class_without_an_example_is_refused():
    with pytest.raises(ValueError, match="the docstring of Broken has no example"):
        check_guide(Broken, only=["text"])
    with pytest.raises(TypeError, match="expected a guide or a method, got 3"):
        check_guide(3)


def test_values_outside_a_range():
    from math import inf, isnan

    values = outside(Range(0, 1, closed="left"))
    assert isnan(values[0])
    assert set(values[1:]) == {1, -1, 2, inf, -inf}
