"""Conditions: subsets, replacement, masks, batches."""

import pytest
import torch

from fairlead.condition import Condition, concatenate

BOTH = Condition({"label": [3, 5], "text": torch.arange(8.0).reshape(2, 4)})


def test_mapping():
    assert list(BOTH) == ["label", "text"]
    assert BOTH["label"].tolist() == [3, 5]
    assert BOTH.batch == 2
    assert repr(BOTH) == "Condition(label: (2,), text: (2, 4))"
    assert not Condition()
    assert Condition().batch is None
    with pytest.raises(KeyError, match="condition: no 'lable'; did you mean 'label'"):
        BOTH["lable"]


def test_subsets_and_replacement_leave_the_original():
    assert list(BOTH.only("text")) == ["text"]
    replaced = BOTH.replace(label=[1, 1])
    assert replaced["label"].tolist() == [1, 1]
    assert BOTH["label"].tolist() == [3, 5]
    with pytest.raises(KeyError, match="no 'image'"):
        BOTH.only("image")


def test_mask_per_sample():
    other = Condition({"label": [10, 10], "text": torch.zeros(2, 4)})
    mixed = BOTH.where(torch.tensor([True, False]), other)
    assert mixed["label"].tolist() == [3, 10]
    assert mixed["text"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]


def test_rows_by_index_and_slice():
    assert BOTH.rows(torch.tensor([1]))["label"].tolist() == [5]
    assert BOTH.rows(slice(0, 1))["text"].shape == (1, 4)


def test_expand():
    grown = Condition({"label": 3, "text": torch.zeros(1, 4)}).expand(3)
    assert grown["label"].tolist() == [3, 3, 3]
    assert grown["text"].shape == (3, 4)
    with pytest.raises(ValueError, match="condition: label has batch 2, but x has batch 3"):
        BOTH.expand(3)
    with pytest.raises(ValueError, match=r"batches differ: \{'a': 1, 'b': 2\}"):
        Condition({"a": [1], "b": [1, 2]})


def test_concatenate():
    stacked = concatenate([BOTH, BOTH.replace(label=[0, 1])])
    assert stacked["label"].tolist() == [3, 5, 0, 1]
    assert stacked["text"].shape == (4, 4)
    assert concatenate([BOTH]) is BOTH
