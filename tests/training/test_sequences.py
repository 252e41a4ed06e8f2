"""Token data and recipes: what is read, what a tiny run writes, and that it can go on."""

from dataclasses import replace
from math import inf

import pytest
import torch
from safetensors.torch import load_file

from fairlead.models import zoo
from fairlead.models.language import character_tokenizer
from fairlead.training import TOKEN_RECIPES, Budget, TokenTraining, run_tokens
from fairlead.training.tokens import (
    END,
    MOLECULE_LENGTH,
    properties,
    qm9,
    shakespeare,
    split_smiles,
)

SMILES = ["C", "CCO", "C1CC1", "CC(=O)N", "c1cc[nH]c1", "C((", "C[NH3+]"] * 40
TURNS = [("ROMEO", "But soft!\nWhat light"), ("JULIET", "Ay me!\nO gentle")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "qm9").mkdir()
    (folder / "qm9" / "smiles.csv").write_text("smiles\n" + "\n".join(SMILES) + "\n")
    (folder / "tinyshakespeare").mkdir()
    text = "\n\n".join(f"{who}:\n{what}" for who, what in TURNS * 700)
    (folder / "tinyshakespeare" / "input.txt").write_text(text + "\n\nNurse:\nNay.\nWell.")
    return folder


def test_smiles_split_into_atoms_and_bonds():
    assert split_smiles("C[NH2+]Cl%10=c1") == ["C", "[NH2+]", "Cl", "%10", "=", "c", "1"]


def test_molecules(root):
    pytest.importorskip("rdkit")
    data, test = qm9("train", root), qm9("test", root)
    assert (root / "qm9" / "properties.safetensors").exists()
    assert data.vocabulary[0] == END
    assert data.tokens.shape[1] == MOLECULE_LENGTH
    assert len(data) + len(test) == 240  # 40 of the 280 do not parse
    back = ["".join(data.vocabulary[i] for i in row if i) for row in data.tokens.tolist()]
    assert set(back) == set(SMILES) - {"C(("}
    rings = dict(zip(back, data.conditions["rings"].tolist(), strict=True))
    assert (rings["C1CC1"], rings["CCO"]) == (1, 0)
    assert data.conditions["qed"].max() <= 9


def test_table_of_properties_belongs_to_its_molecules(root, tmp_path):
    pytest.importorskip("rdkit")
    table = properties(["CCO", "(("], [tmp_path])
    assert table["qed"][1] == 0
    kept = load_file(tmp_path / "properties.safetensors")
    assert torch.equal(kept["qed"], table["qed"])
    assert len(properties(["C", "CC", "CCC"], [tmp_path])["qed"]) == 3  # not the old table


def test_speeches(root):
    data = shakespeare("train", root, length=16)
    assert data.classes["speaker"] == ("JULIET", "ROMEO", "other")
    texts = ["".join(data.vocabulary[i] for i in row) for row in data.tokens.tolist()]
    assert {t for t, s in zip(texts, data.conditions["speaker"], strict=True) if s == 1} == {
        "But soft!\nWhat l",
        "What light\n\nBut ",
    }


def test_missing_data_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no QM9 molecules"):
        qm9("train", tmp_path)
    with pytest.raises(FileNotFoundError, match="no Tiny Shakespeare"):
        shakespeare("train", tmp_path)


BUDGET = Budget(minutes=inf, max_steps=3, batch=8, warmup=1, condition_dropout=0.3, bf16=False)
SMALL = {"width": 16, "depth": 1, "heads": 2}
TINY = {
    "masked": TokenTraining("qm9", BUDGET, "token-transformer", "masked", SMALL),
    "uniform": TokenTraining("qm9", BUDGET, "token-transformer", "uniform", SMALL),
    "classifier": TokenTraining("qm9", BUDGET, "token-classifier", "masked", SMALL),
    "language": TokenTraining("shakespeare", BUDGET, "language", None, {**SMALL, "hidden": 16}),
}


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", TINY)
def test_run_writes_a_model_that_loads_and_can_go_on(name, root, tmp_path):
    pytest.importorskip("transformers" if name == "language" else "rdkit")
    info = run_tokens(TINY[name], tmp_path / "a", tmp_path, root, name=name, device="cpu")
    assert info["step"] == 3
    about = zoo.card(tmp_path / f"{name}.safetensors")
    assert about["metrics"]["test_loss"] == info["test_loss"]
    network = zoo.network(tmp_path / f"{name}.safetensors")
    z = torch.zeros(2, 5, dtype=torch.long)
    outputs = network(z) if name == "language" else network(z, torch.full((2,), 0.5))
    if name == "classifier":
        assert outputs["rings"].shape == (2, 7)
    else:
        assert outputs.shape == (2, 5, about["config"]["tokens"])

    def stop(info):
        raise Stop

    with pytest.raises(Stop):
        run_tokens(TINY[name], tmp_path / "b", tmp_path, root, stop, name=name, device="cpu")
    run_tokens(TINY[name], tmp_path / "b", tmp_path / "again", root, name=name, device="cpu")
    first, second = (load_file(tmp_path / where / "state.safetensors") for where in "ab")
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_tokenizer_finds_special_tokens_whole():
    pytest.importorskip("transformers")
    tokenizer = character_tokenizer(["a", "b", "\n", "<ROMEO>", "<pad>"], 4)
    ids = tokenizer(["<ROMEO>ab\n", "b"], padding=True)["input_ids"]
    assert ids == [[3, 0, 1, 2], [4, 4, 4, 1]]
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "ab\n"


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'qm9-masked'"):
        run_tokens("qm9-maskd", "unused", "unused")
    with pytest.raises(ValueError, match="TokenTraining: process must be one of masked, uniform"):
        replace(TOKEN_RECIPES["qm9-masked"], process="mask")
