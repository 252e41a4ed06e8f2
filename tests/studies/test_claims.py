import json
import math
from collections.abc import Mapping

import pytest
import torch

import fairlead as fl
from fairlead.exact import GaussianPair, ddim_variance, ddpm_variance
from fairlead.guidance.algebra import REGISTRY
from fairlead.metrics import Estimate
from fairlead.samplers.base import SAMPLERS
from fairlead.studies import claims
from fairlead.studies.claims import _exact, _harness
from fairlead.studies.claims._verdict import above, agrees, below, difference, verdict

KEYS = {
    "name": str,
    "ids": list,
    "claim": str,
    "setting": str,
    "measured": dict,
    "expected": str,
    "checks": dict,
    "verdict": str,
    "seconds": float,
    "seed": int | list,
    "nfe": float | int | None,
    "error": str | None,
    "inputs": str,
}
# samplers that are claims of papers on guidance
METHODS = sorted(
    {name for name, cls in REGISTRY.items() if cls.__module__.startswith("fairlead.")}
    | {name for name, cls in SAMPLERS.items() if "S003" in getattr(cls, "ids", ())}
)


@pytest.fixture
def scratch(monkeypatch, tmp_path):
    """A harness whose registry and record may be written to."""
    claims.names()
    monkeypatch.setattr(_harness, "CLAIMS", dict(_harness.CLAIMS))
    monkeypatch.setattr(_harness, "RECORDED", tmp_path / "recorded")
    return _harness


def enter(name, check):
    claims.claim(name, ids=("X1",), claim="a", setting="b", expected="c", seed=3)(check)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([True, True], "reproduced"),
        ([True, None], "inconclusive"),
        ([None, False, True], "not reproduced"),
        ([], "inconclusive"),
    ],
)
def test_verdict(checks, expected):
    assert verdict(checks) == expected


@pytest.mark.parametrize(
    ("low", "high", "is_above", "is_below"),
    [
        (0.1, 0.2, True, False),
        (-0.2, -0.1, False, True),
        (-0.1, 0.1, None, None),
        (math.nan, math.nan, None, None),
    ],
)
def test_interval_that_straddles_cannot_tell(low, high, is_above, is_below):
    estimate = Estimate((low + high) / 2, low, high)
    assert above(estimate) is is_above
    assert below(estimate) is is_below


def test_agreement_allows_three_deviations_and_the_rounding():
    estimate = Estimate(1.0, 1 - 1.96, 1 + 1.96)  # standard error 1
    edge = 3 * math.sqrt(2)
    assert agrees(estimate, 1 + edge + 0.4, 0.5)
    assert not agrees(estimate, 1 + edge + 0.6, 0.5)


def test_difference_adds_variances():
    d = difference(Estimate(3, 0, 6), Estimate(1, -3, 5))  # half widths 3 and 4
    assert (d.value, d.low, d.high) == (2, -3, 7)


def test_result_has_every_field_and_is_plain_json(scratch):
    value = {"a": Estimate(1 / 3, 0.1, 0.5), "b": [torch.tensor(2.0)], "c": math.nan}
    enter("made", lambda: claims.Finding(value, {"holds": True, "open": None}, nfe=4))
    (result,) = claims.run(["made"])
    assert set(result) == set(KEYS)
    assert result["measured"] == {
        "a": {"value": 0.3333, "low": 0.1, "high": 0.5},
        "b": [2.0],
        "c": None,
    }
    assert (result["verdict"], result["seed"], result["nfe"]) == ("inconclusive", 3, 4)
    assert json.loads(json.dumps(result)) == result


def test_error_is_recorded_and_the_rest_runs(scratch):
    def broken():
        raise ZeroDivisionError("no samples")

    enter("broken", broken)
    enter("fine", lambda: claims.Finding({}, {"holds": True}))
    lines = []
    first, second = claims.run(["broken", "fine"], lines.append, save=True)
    assert first["error"] == "ZeroDivisionError: no samples"
    assert first["verdict"] == "inconclusive"
    assert second["verdict"] == "reproduced"
    assert claims.recorded() == [first, second]
    assert any("error: ZeroDivisionError" in line for line in lines)


def test_interrupted_run_goes_on_where_it_stopped(scratch):
    calls = []

    def counted(name):
        def check():
            calls.append(name)
            if name == "b" and calls.count("b") == 1:
                raise KeyboardInterrupt
            return claims.Finding({}, {"holds": True})

        return check

    for name in ("a", "b"):
        enter(name, counted(name))
    with pytest.raises(KeyboardInterrupt):
        claims.run(["a", "b"], save=True)
    assert [r["name"] for r in claims.recorded()] == ["a"]
    results = claims.run(["a", "b"], save=True, resume=True)
    assert calls == ["a", "b", "b"]
    assert [r["verdict"] for r in results] == ["reproduced", "reproduced"]


def test_result_of_other_inputs_or_with_an_error_runs_again(scratch):
    enter("a", lambda: claims.Finding({}, {"holds": True}))
    (result,) = claims.run(["a"])
    for stale in ({"inputs": "0"}, {"error": "ValueError: x"}):
        claims.record([{**result, **stale}])
        claims.run(["a"], save=True, resume=True)
        (kept,) = claims.recorded()
        assert (kept["inputs"], kept["error"]) == (result["inputs"], None)


def test_a_claim_depends_on_the_files_that_it_imports_and_on_no_others():
    for claim, used in {
        "cfg": {"cfg", "_exact", "_images", "_verdict"},
        "bands": {"bands", "frequency", "_pixels", "_verdict"},
    }.items():
        path = _harness.FOLDER / f"{claim}.py"
        assert {p.stem for p in _harness._sources(path)} == used


def test_record_keeps_order_and_drops_claims_that_are_gone(scratch):
    for name in ("z", "y"):
        enter(name, lambda: claims.Finding({}, {"holds": True}))
    y, z = claims.run(["y"]) + claims.run(["z"])
    claims.record([y, {**z, "name": "gone"}])
    claims.record([z])
    assert [r["name"] for r in claims.recorded()] == ["z", "y"]


def test_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match=r"unknown claim 'treshold'; .*'threshold'"):
        claims.run(["treshold"])


def test_pattern_selects_all_claims_of_a_method():
    assert [c.name for c in _harness.select(["cfgpp*"])] == ["cfgpp", "cfgpp-steps"]


def test_name_is_taken_once(scratch):
    with pytest.raises(ValueError, match="'cfg' is taken"):
        enter("cfg", lambda: claims.Finding({}, {}))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_claim_on_record(method):
    recorded = {r["name"]: r for r in claims.recorded()}
    own = [n for n in claims.names() if n == method or n.startswith(f"{method}-")]
    assert own, f"{method} has no claim: add studies/claims/{method}.py"
    missing = [n for n in own if n not in recorded]
    assert not missing, f"run `fairlead claims --record {' '.join(missing)}`"


@pytest.mark.parametrize("result", claims.recorded(), ids=lambda r: r["name"])
def test_recorded_result_is_whole(result):
    assert set(result) == set(KEYS)
    for key, kind in KEYS.items():
        assert isinstance(result[key], kind), key
    assert result["error"] is None
    assert result["verdict"] == verdict(result["checks"].values())
    assert result["ids"]
    (known,) = claims.select([result["name"]])
    for key in ("claim", "expected"):
        assert result[key] == getattr(known, key), f"{key} was changed after the run"

    def finite(value):
        if isinstance(value, Mapping):
            return all(finite(v) for v in value.values())
        return all(finite(v) for v in value) if isinstance(value, list) else value is not None

    assert finite(result["measured"])


@pytest.mark.parametrize("w", [1.0, 3.0])
@pytest.mark.parametrize(("sampler", "exact"), [("ddim", ddim_variance), ("ddpm", ddpm_variance)])
def test_end_variance_of_a_sampler_is_the_recursion(sampler, exact, w):
    pair, levels = GaussianPair(), fl.schedules.DiscreteVP.linear().grid(40)
    found = _exact.end_variance(pair, sampler, f"cfg({w})", levels, 1.3)
    # both in float64; 40 products of numbers near 1
    assert found == pytest.approx(exact(pair, w, levels, 1.3), rel=1e-12)


@pytest.mark.parametrize("name", ["cfg-variance", "adaptive"])
def test_cheap_claims_come_out_as_recorded(name):
    (result,) = claims.run([name])
    kept = next(r for r in claims.recorded() if r["name"] == name)
    assert result["verdict"] == kept["verdict"]
    assert result["checks"] == kept["checks"]
