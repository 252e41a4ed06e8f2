"""Presets: which methods they hold, what is left out and why, and that they go on."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

import fairlead as fl
from fairlead.cli import app
from fairlead.guidance.algebra import REGISTRY, Policy, Rule
from fairlead.studies.presets import PRESETS, SETTINGS, lines, run

SMALL = {"n": 6, "steps": 2, "sampler": "euler", "scales": [2.0, 3.0]}


@pytest.mark.parametrize(("preset", "kind"), [("rules", Rule), ("policies", Policy)])
def test_every_method_of_the_kind_at_every_scale(preset, kind):
    found = lines(preset, [2.0, 4.0])
    of_kind = {n for n, c in REGISTRY.items() if issubclass(c, kind) and "continuous" in c.domains}
    assert set(found) == of_kind | {"none", "cfg"}
    assert found["none"] == ["none"]
    for name, texts in found.items():
        if name != "none":
            assert [fl.guide(t).nodes().__next__() for t in texts] == [fl.CFG(2.0), fl.CFG(4.0)]
            assert all(str(fl.guide(t)) == t for t in texts)


def test_perturbations_are_terms_of_equal_strength():
    found = lines("perturbations", [3.0])
    assert {"pag", "tsg", "autoguidance", "icg"} <= set(found)
    assert not {"perp_neg", "cfgpp"} & set(found)
    for name in set(found) - {"none"}:
        term = fl.guide(found[name][0])
        assert term.strength == 2.0, name


def test_settings_are_of_methods_that_exist():
    assert set(SETTINGS) <= set(REGISTRY)
    assert set(PRESETS) == {"rules", "perturbations", "policies"}


def test_runs_leaves_out_and_goes_on(model, tmp_path, monkeypatch):
    found, left_out = run("perturbations", tmp_path, model=model, **SMALL)
    assert set(left_out) >= {"autoguidance"}
    assert "a model 'weak'" in left_out["autoguidance"]
    kept = set(lines("perturbations", SMALL["scales"])) - set(left_out)
    assert len(found.rows) == 2 * (len(kept) - 1) + 1
    with Image.open(tmp_path / "pareto.png") as image:
        image.verify()
    drawn = []
    monkeypatch.setattr("fairlead.studies.compare.sample", lambda *a, **k: drawn.append(a))
    again, _ = run("perturbations", tmp_path, model=model, **SMALL)
    assert not drawn
    assert [r.guide for r in again.rows] == [r.guide for r in found.rows]
    assert json.loads((tmp_path / "compare.json").read_text())["results"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preset", "rule"], ["preset must be one of", "did you mean 'rules'"]),
        (["--preset", "rules", "--guide", "cfg(2)"], ["--guide, or one --preset"]),
        ([], ["--guide, or one --preset"]),
        (["--guide", "cfg(2)", "--scale", "2"], ["--scale belongs to a --preset"]),
        (["--preset", "rules", "--scale", "1"], ["scales must be finite and not 1"]),
        (["--preset", "rules", "--scale", "2", "--scale", "2"], ["must be given and differ"]),
    ],
)
def test_refusals(words, says, tmp_path):
    result = CliRunner().invoke(app, ["compare", "--out", str(tmp_path), *words])
    assert result.exit_code == 2
    for part in says:
        assert part in result.stderr


def test_command(model, tmp_path):
    words = ["compare", "--preset", "perturbations", "--scale", "2", "--model", model]
    words += ["-n", "6", "--steps", "1", "--sampler", "euler", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "left out: autoguidance: " in result.stderr
    assert "pag(1.0" in result.stdout
