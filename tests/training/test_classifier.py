"""The classifiers: their training, and the one that ships for digits."""

import pytest
import torch
from torch.testing import assert_close

from fairlead.models import zoo
from fairlead.models.classifier import Classifier
from fairlead.training.classifier import (
    CONFIGS,
    OPTIONS,
    _augment,
    embed,
    run_classifier,
    ship_classifier,
    train_classifier,
)
from fairlead.training.data import DATASETS, Images, digits

# the class is the row that is bright
PIXELS = (
    (torch.eye(4)[:, None, :, None] * torch.full((4, 1, 4, 4), 255.0)).byte().repeat(8, 1, 1, 1)
)
DATA = Images(PIXELS, torch.arange(32) % 4, tuple("abcd"), "made up")


def network():
    torch.manual_seed(0)
    return Classifier(size=4, channels=1, classes=4, patch=1, widths=(16, 16))


def test_learns_and_repeats():
    runs = []
    for _ in range(2):
        trained = network()
        info = train_classifier(trained, DATA, max_steps=40, batch=16, bf16=False)
        assert info["step"] == 40
        assert info["images"] == 640
        runs.append(trained(DATA.batch(torch.arange(4))[0]))
    assert torch.equal(runs[0].argmax(1), torch.arange(4))
    assert torch.equal(*runs)


def test_needs_a_budget_and_a_batch():
    with pytest.raises(ValueError, match="give a budget"):
        train_classifier(network(), DATA)
    with pytest.raises(ValueError, match=r"batch must be in \[2, 32\], got 64"):
        train_classifier(network(), DATA, max_steps=1, batch=64)


def test_augmentation_crops_and_mirrors():
    image = torch.arange(16).reshape(1, 1, 4, 4)
    many = (
        torch.nn.functional.pad(image.float(), [1] * 4, mode="reflect").byte().repeat(200, 1, 1, 1)
    )
    out = _augment(many, 1, True, torch.Generator().manual_seed(0))
    assert out.shape == (200, 1, 4, 4)
    kinds = {tuple(x.flatten().tolist()) for x in out}
    assert len(kinds) == 18  # 9 crops, each also mirrored
    assert tuple((image.float() / 127.5 - 1).flatten().tolist()) in kinds
    assert torch.equal(_augment(image.byte(), 0, False, torch.Generator()), image / 127.5 - 1)


def test_statistics_are_those_of_what_ships(tmp_path, monkeypatch):
    info = {"step": 1, "images": 16, "seconds": 6.0}
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    info = ship_classifier(network().eval(), "made-classifier", DATA, DATA, info, tmp_path)
    shipped = zoo.classifier("made")
    assert zoo.card("made-classifier")["metrics"]["accuracy"] == info["accuracy"]
    assert zoo.card("made-classifier")["data"] == "made"
    kept, features = zoo.reference("made"), embed(shipped, DATA)
    assert kept["count"] == 32
    assert_close(kept["mean"], features.double().mean(0), rtol=1e-6, atol=1e-6)
    assert_close(kept["cov"], features.double().T.cov(), rtol=1e-6, atol=1e-6)
    assert_close(kept["features"], features, rtol=2**-11, atol=2**-25)
    assert torch.equal(kept["labels"], DATA.labels)


@pytest.mark.parametrize("name", CONFIGS)
def test_recipe_is_that_of_what_ships(name):
    about = zoo.card(name)
    assert about["config"]["widths"] == list(CONFIGS[name]["widths"])
    assert about["seed"] == OPTIONS[name].get("seed", 0)


def test_two_classifiers_of_the_same_images_lie_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    monkeypatch.setitem(DATASETS, "cifar10", lambda *_: DATA)
    small = {"size": 4, "channels": 1, "patch": 1, "widths": (8, 8)}
    for name in ("cifar10-classifier", "cifar10-judge"):
        monkeypatch.setitem(CONFIGS, name, small)
        monkeypatch.setitem(OPTIONS, name, {**OPTIONS[name], "batch": 16, "max_steps": 2, "pad": 1})
        run_classifier(name, tmp_path)
    first, second = zoo.classifier("cifar10"), zoo.classifier("cifar10-judge")
    assert not torch.equal(first.outputs.weight, second.outputs.weight)  # another seed
    for name, network in (("cifar10", first), ("cifar10-judge", second)):
        kept = embed(network, DATA).double().mean(0)
        assert_close(zoo.reference(name)["mean"], kept, rtol=1e-6, atol=1e-6)


def test_shipped_digits_classifier_is_right():
    test = digits("test")
    shipped = zoo.classifier("digits")
    right = shipped(test.batch(torch.arange(len(test)))[0]).argmax(1) == test.labels
    accuracy = right.double().mean().item()
    assert accuracy > 0.95
    assert_close(accuracy, zoo.card("digits-classifier")["metrics"]["accuracy"], rtol=0, atol=0.01)
