"""The judge report: who guided does not count."""

import json

import pytest
import torch

from fairlead.energy import Classifier, Ensemble
from fairlead.metrics import judge_report


def judge(*wrong):
    """Finds class 1 in every sample but the given ones."""

    def network(z):
        miss = torch.zeros(len(z), dtype=torch.bool)
        index = z[:, 0].long()
        for i in wrong:
            miss |= index == i
        return torch.stack([miss.float(), (~miss).float()], 1) * 4

    return Classifier(network, 1)


X = torch.arange(10.0)[:, None]


def test_success_and_gap_by_hand():
    report = judge_report(X, 1, judge(0), {"strict": judge(0, 1, 2, 3), "mild": judge(5, 6)})
    assert report.guiding.value == pytest.approx(0.9)
    assert report.independent["strict"].value == pytest.approx(0.6)
    assert report.success == pytest.approx(0.6)
    assert report.gap == pytest.approx(0.3)
    assert report.gaps["mild"].value == pytest.approx(0.1)
    assert report.gaps["mild"].low < 0 < report.gaps["mild"].high  # two missed against one
    text = str(report)
    assert "guiding judge      0.900" in text
    assert "does not count" in text
    assert json.loads(json.dumps(report.to_dict()))["gaps"]["strict"]["value"] == 0.3


def test_label_per_sample():
    labels = torch.tensor([0] + [1] * 9)
    assert judge_report(X, labels, judge(), {"other": judge(0)}).success == 1.0


def test_it_takes_another_judge():
    own = judge()
    with pytest.raises(ValueError, match="success is scored by judges that did not guide"):
        judge_report(X, 1, own, {})
    with pytest.raises(ValueError, match="'same' is the judge that guided"):
        judge_report(X, 1, own, {"same": own})


def test_ensemble_averages_probabilities():
    both = Ensemble([judge(0), judge()], 1)
    p, q = (j.log_probs(X[:1]).exp() for j in both.judges)
    torch.testing.assert_close(both.log_probs(X[:1]).exp(), (p + q) / 2)
    with pytest.raises(ValueError, match="judges are empty"):
        Ensemble([], 1)
