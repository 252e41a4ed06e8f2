"""The trainer: the loss by its closed form, and runs that end, stop and go on."""

import json
from dataclasses import replace
from math import inf

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from fairlead.models.unet import UNet
from fairlead.prediction import edm_input, to_x0
from fairlead.training import Recipe, edm_loss, train
from fairlead.training.data import Images

DATA = Images(
    torch.randint(0, 256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte(),
    torch.arange(20) % 3,
    ("a", "b", "c"),
    "made up",
)
RECIPE = Recipe(minutes=inf, max_steps=8, batch=8, warmup=2, flip=True, snapshots=(0.25, 1.0))


def network():
    torch.manual_seed(0)
    return UNet(
        size=4, channels=1, classes=3, patch=2, widths=(16,), blocks=1, attention=(0,), heads=2
    )


class Zero(nn.Module):
    def forward(self, x, t, label):
        return torch.zeros_like(x)


def gaussian(count):
    """Data of standard deviation 1/2, noise, and levels from 0.01 to 50."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(count, 1, generator=g, dtype=torch.float64) / 2
    sigma = torch.logspace(-2, 1.7, count, dtype=torch.float64)
    n = torch.randn(count, 1, generator=g, dtype=torch.float64)
    return x0, torch.zeros(count).long(), sigma, n


def test_loss_is_the_weighted_error_of_the_denoiser():
    x0, label, sigma, n = gaussian(1000)

    def raw(x, t, label):
        return (x + t[:, None]).sin()

    def network(x, t, label):
        return raw(x, t, label).double()

    s, sd = sigma[:, None], 0.5
    x = x0 + s * n
    output = raw(edm_input(x, 1.0, s), sigma.log() / 4, label)
    error = to_x0(output, x, 1.0, s, "edm") - x0
    weighted = ((s**2 + sd**2) / (s * sd) ** 2 * error**2).mean()
    assert_close(edm_loss(network, x0, label, sigma, n), weighted)


def test_zero_is_the_best_linear_denoiser_of_gaussian_data():
    batch = gaussian(200_000)
    best = edm_loss(Zero(), *batch)
    assert_close(best.item(), 1.0, rtol=0, atol=0.02)  # sd of the mean is sqrt(2 / 200000)

    for slope in (-0.05, 0.05):

        def linear(x, t, label, slope=slope):
            return slope * x

        gain = edm_loss(linear, *batch) - best  # slope^2 E[x^2] - 2 slope E[x target], E = 0
        assert_close(gain.item(), slope**2, rtol=0, atol=1e-3)


def test_loss_of_one_sample_by_hand():
    one = torch.ones(1, 1)
    loss = edm_loss(Zero(), one, torch.zeros(1).long(), torch.tensor([0.5]), one)
    # x = 1.5, D = 0.75, error 1/4; weight (1/4 + 1/4) / (1/16) = 8
    assert_close(loss.item(), 8 / 16)


def test_learning_rate_warms_up_stays_and_falls():
    recipe = Recipe(lr=1.0, warmup=4, decay_from=0.5)
    assert [recipe.lr_at(s, 0.1) for s in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert [recipe.lr_at(9, p) for p in (0.5, 0.75, 1.0)] == [1.0, 0.5, 0.0]


def test_share_is_the_larger_of_both_budgets():
    recipe = Recipe(minutes=10, max_steps=100)
    assert recipe.share(50, 60) == 0.5
    assert recipe.share(5, 60) == 0.1
    assert Recipe(minutes=10).share(10**9, 60) == 0.1


def weights(folder):
    return load_file(folder / "state.safetensors")


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


class Stop(Exception):
    pass


def test_run_that_stopped_ends_like_one_that_did_not(tmp_path):
    whole, parts = network(), network()
    straight = train(whole, DATA, RECIPE, tmp_path / "whole")

    def stop(info):
        raise Stop

    with pytest.raises(Stop):  # after the first step
        train(parts, DATA, RECIPE, tmp_path / "parts", stop)
    assert json.loads((tmp_path / "parts/state.json").read_text())["info"]["step"] == 1
    resumed = train(network(), DATA, RECIPE, tmp_path / "parts")
    assert resumed["step"] == straight["step"] == 8
    assert resumed["loss"] == straight["loss"]
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    for mark in ("0.25", "1"):
        name = f"snapshot-{mark}.safetensors"
        assert_same(load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name))


def test_interrupt_amid_a_step_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    straight = network()
    train(straight, DATA, RECIPE, tmp_path / "whole")
    lerp, calls = torch._foreach_lerp_, []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        lerp(*args)

    monkeypatch.setattr(torch, "_foreach_lerp_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(network(), DATA, RECIPE, tmp_path / "parts", save_every=0.0)
    assert json.loads((tmp_path / "parts/state.json").read_text())["info"]["step"] == 3
    train(network(), DATA, RECIPE, tmp_path / "parts")
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_run_that_has_ended_does_nothing_more(tmp_path):
    train(network(), DATA, RECIPE, tmp_path)
    before = weights(tmp_path)
    again = network()
    assert train(again, DATA, RECIPE, tmp_path)["step"] == 8
    assert_same(before, weights(tmp_path))
    assert_same({f"ema.{k}": v for k, v in again.state_dict().items()}, _only_ema(before))


def _only_ema(tensors):
    return {k: v for k, v in tensors.items() if k.startswith("ema.")}


def test_ends_with_the_mean_weights_for_evaluation(tmp_path):
    trained = network()
    train(trained, DATA, replace(RECIPE, max_steps=1), tmp_path)
    kept = weights(tmp_path)
    assert not trained.training
    for key, start in network().state_dict().items():
        mean = 0.1 * start + 0.9 * kept[f"network.{key}"]  # decay (1 + 0) / (10 + 0)
        assert_close(trained.state_dict()[key], mean)


def test_snapshots_are_taken_at_their_marks(tmp_path):
    train(network(), DATA, RECIPE, tmp_path)
    early = load_file(tmp_path / "snapshot-0.25.safetensors")
    late = load_file(tmp_path / "snapshot-1.safetensors")
    assert_same({f"ema.{k}": v for k, v in late.items()}, _only_ema(weights(tmp_path)))
    short = network()
    train(short, DATA, replace(RECIPE, max_steps=2, decay_from=0.999), tmp_path / "short")
    # the rate is still constant at step 2 of 8, so a run of 2 steps is the same
    assert_close(short.state_dict()["inputs.weight"], early["inputs.weight"])


def labels_seen(tmp_path, recipe):
    seen = []

    class Spy(UNet):
        def forward(self, x, t, label):
            seen.append(label)
            return super().forward(x, t, label)

    spy = Spy(size=4, channels=1, classes=3, patch=2, widths=(16,), blocks=1, attention=())
    train(spy, DATA, recipe, tmp_path)
    return seen


def test_labels_are_dropped_only_from_the_share_on(tmp_path):
    seen = labels_seen(tmp_path, replace(RECIPE, condition_dropout=1.0, dropout_from=0.5))
    assert [bool((label == 3).all()) for label in seen] == [False] * 4 + [True] * 4
    assert all((label != 3).all() for label in seen[:4])


def test_other_recipe_is_refused_by_name(tmp_path):
    train(network(), DATA, RECIPE, tmp_path)
    with pytest.raises(ValueError, match=r"another recipe \(lr, flip differ\)"):
        train(network(), DATA, replace(RECIPE, lr=1.0, flip=False), tmp_path)


def test_other_network_is_refused(tmp_path):
    train(network(), DATA, RECIPE, tmp_path)
    other = UNet(size=4, channels=1, classes=3, patch=2, widths=(32,), blocks=1)
    with pytest.raises(ValueError, match="another network"):
        train(other, DATA, RECIPE, tmp_path)


def test_checkpoint_of_an_earlier_version_resumes(tmp_path):
    """Those had no `max_steps`, and the step count in the JSON file alone."""
    recipe = Recipe(minutes=1e-3, batch=8)
    train(network(), DATA, recipe, tmp_path)
    kept = json.loads((tmp_path / "state.json").read_text())
    del kept["config"], kept["recipe"]["max_steps"]
    (tmp_path / "state.json").write_text(json.dumps(kept))
    save_file(weights(tmp_path), tmp_path / "state.safetensors", {"step": "1"})
    assert train(network(), DATA, recipe, tmp_path)["step"] == kept["info"]["step"]


def test_loss_that_is_not_finite_stops_the_run_before_the_weights_break(tmp_path):
    broken = network()
    nn.init.constant_(broken.outputs.bias, torch.inf)
    with pytest.raises(FloatingPointError, match="the loss is inf at step 0"):
        train(broken, DATA, RECIPE, tmp_path)
    assert not any(k.startswith("optimizer.") for k in weights(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("minutes", 0.0),
        ("batch", 0),
        ("lr", 0.0),
        ("decay_from", 1.0),
        ("warmup", 0),
        ("ema", 1.0),
        ("condition_dropout", 1.1),
        ("dropout_from", -0.1),
        ("p_std", -1.0),
        ("p_mean", inf),
        ("snapshots", (0.0,)),
        ("max_steps", 0),
    ],
)
def test_bad_recipe_is_named(name, value):
    with pytest.raises(ValueError, match=f"Recipe: {name} must be in"):
        Recipe(**{name: value})


def test_recipe_needs_an_end():
    with pytest.raises(ValueError, match="minutes must be finite where max_steps is None"):
        Recipe(minutes=inf)


def test_batch_larger_than_the_data(tmp_path):
    with pytest.raises(ValueError, match="batch must be at most 20, got 64"):
        train(network(), DATA, replace(RECIPE, batch=64), tmp_path)
