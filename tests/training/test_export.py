"""Recipes, and shipped models out of a run's folder."""

import json
from dataclasses import replace
from math import inf

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from fairlead.models import zoo
from fairlead.training import RECIPES, Recipe, Training, export, run

TINY = Training(
    data="digits",
    recipe=Recipe(
        minutes=inf, max_steps=4, batch=8, dropout_from=0.4, snapshots=(0.25, 0.4), warmup=1
    ),
    config={"size": 8, "channels": 1, "patch": 4, "widths": (16,), "blocks": 1, "attention": (0,)},
    ships={"": "final", "-weak": 0.25, "-nodropout": 0.4},
)


class Stop(Exception):
    pass


def test_ended_run(tmp_path):
    info = run(TINY, tmp_path / "run")
    written = export(tmp_path / "run", "tiny", tmp_path, recipe=TINY, metrics={"tiny": {"fd": 2.0}})
    assert [p.stem for p in written] == ["tiny", "tiny-weak", "tiny-nodropout"]
    final = zoo.load(tmp_path / "tiny.safetensors")
    for key, value in load_file(tmp_path / "run/final.safetensors").items():
        assert_close(final.network.state_dict()[key], value, rtol=2**-11, atol=2**-25)
    assert final.null == {"label": 10}
    assert final.trained == {"cond", "null"}
    assert final.models["weak"].trained == {"cond"}
    without = zoo.load(tmp_path / "tiny-nodropout.safetensors")
    assert without.null == {}
    assert without.trained == {"cond"}
    about = zoo.card(tmp_path / "tiny.safetensors")
    assert about["metrics"] == {"loss": info["loss"], "fd": 2.0}
    assert (about["steps"], about["images"]) == (4, 32)
    assert "end of the training" in about["note"]
    assert "after 25% of the training" in zoo.card(tmp_path / "tiny-weak.safetensors")["note"]


def test_run_that_has_not_ended_gives_a_stand_in(tmp_path):
    def stop(info):
        raise Stop

    with pytest.raises(Stop):
        run(TINY, tmp_path / "run", progress=stop)
    written = export(tmp_path / "run", "tiny", tmp_path, recipe=TINY)
    assert [p.stem for p in written] == ["tiny", "tiny-weak"]
    denoiser = zoo.load(tmp_path / "tiny.safetensors")
    assert "Unfinished stand-in" in zoo.card(tmp_path / "tiny.safetensors")["note"]
    assert denoiser.trained == {"cond"}  # it stopped before labels were dropped
    mean = load_file(tmp_path / "run/state.safetensors")["ema.outputs.bias"]
    assert_close(denoiser.network.outputs.bias, mean, rtol=2**-11, atol=2**-25)


def test_run_leaves_the_global_generator_alone(tmp_path):
    state = torch.get_rng_state()
    run(TINY, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_run_is_a_function_of_its_recipe(tmp_path):
    for name in ("a", "b"):
        run(TINY, tmp_path / name)
    a, b = (load_file(tmp_path / name / "final.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_another_recipe_is_refused_but_another_budget_is_not(tmp_path):
    run(TINY, tmp_path / "run", minutes=1e6)
    export(tmp_path / "run", "tiny", tmp_path, recipe=TINY)
    other = replace(TINY, recipe=replace(TINY.recipe, lr=1.0))
    with pytest.raises(ValueError, match=r"another recipe than 'tiny' \(lr differ\)"):
        export(tmp_path / "run", "tiny", tmp_path, recipe=other)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no state\.json"):
        export(tmp_path, "digits", tmp_path)
    run(TINY, tmp_path / "run")
    (tmp_path / "run/snapshot-0.25.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks snapshot-0\.25\.safetensors"):
        export(tmp_path / "run", "tiny", tmp_path, recipe=TINY)


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        run("digit", "unused")
    with pytest.raises(ValueError, match="Training: data must be one of"):
        replace(TINY, data="digit")
    with pytest.raises(ValueError, match="Training: network must be one of"):
        replace(TINY, network="unit")
    with pytest.raises(ValueError, match="Training: ships must be one of"):
        replace(TINY, ships={"": 0.3})


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_that_of_what_ships(name):
    training, about = RECIPES[name], zoo.card(name)
    assert about["config"] == json.loads(json.dumps(dict(training.config)))
    assert about["seed"] == training.recipe.seed
    assert about["images"] == about["steps"] * training.recipe.batch
