"""Loading: round trips, shipped models, and everything that must be refused."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import fairlead as fl
from fairlead.models import zoo
from fairlead.models.dit import DiT
from fairlead.models.unet import UNet
from fairlead.schedules import EDM

CARD = {
    "name": "tiny",
    "network": "dit",
    "schedule": {"name": "EDM", "sigma_min": 0.01, "sigma_max": 50.0},
    "prediction": "edm",
    "sigma_data": 0.5,
    "shape": [1, 8, 8],
    "classes": ["a", "b"],
    "null": {"label": 2},
    "states": ["cond", "null"],
}
SHIPPED = [about["name"] for about in zoo.models()]


def network():
    torch.manual_seed(0)
    return DiT(size=8, channels=1, classes=2, patch=4, width=16, depth=1, heads=2)


@pytest.fixture
def file(tmp_path):
    return zoo.save(network(), CARD, tmp_path)


def edit_card(file, **changes):
    card = file.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


def edit_weights(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_round_trip_keeps_weights_and_card(file):
    denoiser = zoo.load(file)
    for key, value in network().state_dict().items():
        kept = denoiser.network.state_dict()[key]
        assert kept.dtype == value.dtype
        assert_close(kept, value, rtol=2**-11, atol=2**-25)  # half precision's rounding
    assert torch.equal(denoiser.network.time.phases, network().time.phases)  # buffers are exact
    assert denoiser.schedule == EDM(0.01, 50.0)
    assert (denoiser.prediction, denoiser.null, denoiser.shape) == ("edm", {"label": 2}, (1, 8, 8))
    assert denoiser.trained == {"cond", "null"}
    assert not denoiser.network.training
    assert not any(p.requires_grad for p in denoiser.network.parameters())
    assert zoo.card(file)["parameters"] == sum(p.numel() for p in network().parameters())


def test_denoiser_runs_and_embeds(file):
    denoiser = zoo.load(file)
    x, label = torch.randn(2, 1, 8, 8), {"label": torch.tensor([0, 1])}
    assert_close(denoiser(x, 2.0, label), x * 0.25 / 4.25)  # a new network says F = 0
    assert denoiser.module(denoiser.time_embedding)(torch.zeros(2)).shape == (2, 16)
    assert denoiser.choices == {"label": 2}


def test_folder_and_file_are_the_same(file):
    by_folder, by_file = zoo.load(file.parent), zoo.load(str(file))
    assert torch.equal(by_folder.network.positions, by_file.network.positions)


def test_weights_are_readable_by_others(file):
    assert file.stat().st_mode & 0o044 == 0o044


def test_weak_companion_is_read_when_asked_for(file):
    edit_card(file, weak="tiny-weak")
    denoiser = zoo.load(file)  # the companion is not even there yet
    assert list(denoiser.models) == ["weak"]
    with pytest.raises(FileNotFoundError, match="tiny-weak"):
        denoiser.models["weak"]
    zoo.save(network(), {**CARD, "name": "tiny-weak", "states": ["cond"]}, file.parent)
    assert denoiser.models["weak"].trained == {"cond"}
    assert denoiser.models["weak"] is denoiser.models["weak"]
    assert zoo.load(file, weak=True).trained == {"cond"}


def test_no_weak_companion(file):
    with pytest.raises(ValueError, match="tiny has no weak companion"):
        zoo.load(file, weak=True)


def test_weak_companion_stays_in_its_folder(file):
    edit_card(file, weak="../elsewhere/tiny")
    with pytest.raises(ValueError, match="weak must name a file beside"):
        zoo.load(file)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl"])
def test_pickles_are_refused_unread(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(ValueError, match="is a pickle, which can run any code"):
        zoo.load(path)


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_pickle_in_disguise_is_refused(file):
    file.write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(ValueError, match="no whole safetensors file"):
        zoo.load(file)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        zoo.load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("positions"), "lacks the tensor positions"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds a tensor extra"),
        (lambda t: t.update(positions=torch.zeros(4, 8)), r"positions must have shape \(4, 16\)"),
        (lambda t: t.update(positions=torch.zeros(4, 16).long()), "positions must be like"),
        (lambda t: t["positions"].fill_(torch.nan), "positions holds nan or inf"),
    ],
)
def test_tensor_that_does_not_fit_is_named(file, change, message):
    edit_weights(file, change)
    with pytest.raises(ValueError, match=message):
        zoo.load(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet"}, "unknown network 'resnet'"),
        ({"config": {"sizes": 8}}, "fits no dit"),
        ({"config": {"size": 9, "patch": 2}}, "fits no dit"),
        ({"schedule": {"name": "XYZ"}}, "no denoiser's"),
        ({"schedule": {"name": "EDM", "sigma": 3}}, "no denoiser's"),
        ({"prediction": "noise"}, "prediction must be one of"),
    ],
)
def test_card_that_does_not_fit(file, changes, message):
    edit_card(file, **changes)
    with pytest.raises(ValueError, match=message):
        zoo.load(file)


def test_card_cannot_ask_for_memory_that_the_file_does_not_hold(file):
    edit_card(file, config={**network().config, "width": 2**22})  # 10^15 bytes
    with pytest.raises(ValueError, match="must have shape"):
        zoo.load(file)


def test_card_is_missing_or_no_json(file):
    file.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        zoo.load(file)
    file.with_suffix(".json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        zoo.load(file)
    file.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs its card beside it, tiny\.json"):
        zoo.load(file)


def test_folder_without_or_with_several_models(file, tmp_path):
    zoo.save(network(), {**CARD, "name": "other"}, tmp_path)
    with pytest.raises(ValueError, match=r"holds other\.safetensors, tiny\.safetensors"):
        zoo.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds none"):
        zoo.load(tmp_path / "empty")


def test_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'digit'; did you mean 'digits"):
        zoo.load("digit")
    with pytest.raises(ValueError, match="unknown data set 'digit'; did you mean 'digits'"):
        zoo.reference("digit")


def test_a_denoiser_is_no_classifier(file):
    with pytest.raises(ValueError, match="tiny is none"):
        zoo.classifier(file)
    with pytest.raises(ValueError, match="no denoiser's"):
        zoo.load("digits-classifier")


def test_save_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="the card says network='dit', got UNet"):
        zoo.save(UNet(size=8, widths=(16,)), CARD, tmp_path)
    huge = network()
    torch.nn.init.constant_(huge.positions, 1e6)
    with pytest.raises(ValueError, match="positions is not finite in float16"):
        zoo.save(huge, CARD, tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_card_is_complete(name):
    about = zoo.card(name)
    fields = "name network config shape classes data licence steps images seed minutes trained"
    assert set(fields.split()) | {"metrics", "note", "parameters"} <= set(about)
    assert about["name"] == name
    assert about["licence"]["weights"] == "Apache-2.0"
    if about["network"] in ("unet", "dit"):
        assert {"schedule", "prediction", "null", "states"} <= set(about)
    if about["network"] == "token-transformer":
        assert {"process", "vocabulary", "null", "states"} <= set(about)


def test_what_ships():
    assert {"digits", "digits-weak", "digits-classifier", "cifar10", "cifar10-weak"} <= set(SHIPPED)
    assert {"cifar10-classifier", "cifar10-judge"} <= set(SHIPPED)
    tokens = {"qm9-masked", "qm9-uniform", "qm9-masked-classifier", "qm9-uniform-classifier"}
    assert tokens | {"shakespeare-masked", "shakespeare-ar"} <= set(SHIPPED)
    sizes = {p.stem: p.stat().st_size for p in zoo.WEIGHTS.glob("*.safetensors")}
    assert all(size < 8e6 for name, size in sizes.items() if not name.startswith("cifar10"))
    assert sum(sizes.values()) < 90e6


IMAGES = [a["name"] for a in zoo.models() if a["network"] in ("unet", "dit")]
TOKENS = [a["name"] for a in zoo.models() if a["network"] == "token-transformer"]


@pytest.mark.parametrize("name", TOKENS)
def test_shipped_token_denoiser_knows_its_tokens(name):
    denoiser = zoo.load(name)
    g = torch.Generator().manual_seed(0)
    end = denoiser.vocabulary.index("<end>") if "<end>" in denoiser.vocabulary else None
    null = {k: torch.tensor(v) for k, v in denoiser.null.items()}
    z = torch.randint(denoiser.process.tokens, (2, denoiser.shape[0]), generator=g)
    log_p = denoiser.within("clean")(z, 0.5, null)
    assert_close(log_p.exp().sum(-1), torch.ones(2, denoiser.shape[0]).double())
    assert denoiser.attention_layers
    assert len(denoiser.decode(z, end)) == 2


def test_the_independent_judge_is_another_network_of_the_same_classes():
    guiding, independent = zoo.judge("cifar10", [3, 5]), zoo.judge("cifar10-judge", [3, 5])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_close(independent(x), -independent.log_probs(x)[[0, 1], [3, 5]])
    assert not torch.allclose(independent.log_probs(x), guiding.log_probs(x))
    assert guiding.network.config["widths"] != independent.network.config["widths"]
    assert zoo.card("cifar10-judge")["classes"] == zoo.card("cifar10-classifier")["classes"]


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-judge"])
def test_judge_is_as_right_as_its_card_says(name):
    kept, network = zoo.reference(name), zoo.classifier(name)
    right = network.outputs(kept["features"]).argmax(1) == kept["labels"]
    about = zoo.card(name if name.endswith("judge") else f"{name}-classifier")
    # 3 standard errors of at most 2000 of the 10000 test images; digits keep all of theirs
    assert abs(right.double().mean().item() - about["metrics"]["accuracy"]) < 0.03


def test_judge_and_language_model():
    judge = zoo.judge("qm9-uniform", [9, 0], "qed")
    z = torch.zeros(2, 24, dtype=torch.long)
    assert judge(z, fl.discrete.Uniform(41).level(0.5)).shape == (2,)
    with pytest.raises(ValueError, match="property must be one of qed, rings, got 'ring'"):
        zoo.judge("qm9-uniform", 9, "ring")
    with pytest.raises(ValueError, match="judges images, it has no property 'qed'"):
        zoo.judge("digits-classifier", 9, "qed")
    with pytest.raises(ValueError, match="property must be one of qed, rings, got ''"):
        zoo.judge("qm9-uniform", 9)
    with pytest.raises(ValueError, match="cifar10 is no classifier"):
        zoo.judge(zoo.WEIGHTS / "cifar10.safetensors", 9)
    pytest.importorskip("transformers")
    model, tokenizer = zoo.language("shakespeare-ar")
    given = tokenizer(["<ROMEO>But soft, wh"], return_tensors="pt")
    out = model.generate(**given, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True).startswith("But soft, wh")
    with pytest.raises(ValueError, match="digits is no language model"):
        zoo.language("digits")


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_denoiser_denoises(name):
    denoiser = zoo.load(name)
    label = {"label": torch.zeros(2, dtype=torch.long)}
    x = torch.zeros(2, *denoiser.shape)
    assert denoiser(x, 0.5, label).isfinite().all()
    assert denoiser.attention_layers


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar10-judge"])
def test_reference_is_a_covariance_of_the_classifiers_features(name):
    kept = zoo.reference(name)
    width = zoo.classifier(name).outputs.in_features
    assert width <= 256
    assert kept["mean"].shape == (width,)
    assert kept["cov"].shape == (width, width)
    assert torch.equal(kept["cov"], kept["cov"].T)
    assert torch.linalg.eigvalsh(kept["cov"]).min() > -1e-6  # kept in float32
    assert kept["features"].shape[1] == width
    assert len(kept["features"]) == len(kept["labels"])
