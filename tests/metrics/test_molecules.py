"""Molecules: what RDKit reads, counts and means; what it cannot read only counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fairlead.metrics.molecules import describe, evaluate, known

pytest.importorskip("rdkit")


@pytest.mark.parametrize("smiles", ["", "C((", "no molecule", "C1CC", "[", "C" * 3 + "(=O)(=O)=O"])
def test_what_does_not_parse_is_none(smiles):
    assert describe(smiles) is None


@given(st.text(st.sampled_from("CNOFcno()[]=#123%@+-/\\\\.<>*:\0 \n\ud800é"), max_size=12))
def test_no_text_is_too_odd(smiles):
    found = describe(smiles)
    assert found is None or 0 <= found.qed <= 1
    assert evaluate([smiles]).n == 1


def test_describe():
    found = describe("OC1CC1")
    assert (found.smiles, found.rings) == ("OC1CC1", 1)
    assert 0 < found.qed < 1


def test_counts_by_hand():
    smiles = ["CCO", "OCC", "C1CC1", "C((", ""]
    report = evaluate(smiles, known=["CCO"])
    assert (report.n, report.valid, report.unique, report.novel) == (5, 3, 2, 1)
    assert_close(report.qed, describe("C1CC1").qed)
    assert report.rings == 1.0
    free = evaluate(smiles)
    assert (free.novel, free.rings) == (None, 0.5)


def test_nothing_at_all():
    report = evaluate(["C(("], known=[])
    assert (report.valid, report.unique, report.novel, report.qed) == (0, 0, 0, None)


def test_known_molecules_are_looked_up_by_hash():
    training = known("qm9")
    assert len(training) > 100_000
    assert describe("CCO").smiles in training
    assert "no molecule" not in training
    assert evaluate(["OCC", "CCCCCCCCCCCCCCCCO"], training).novel == 1
    with pytest.raises(ValueError, match="name must be one of qm9, got 'qm8'"):
        known("qm8")
