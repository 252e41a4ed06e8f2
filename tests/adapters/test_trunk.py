"""Shared trunks: the same predictions, for as many trunks as there are different inputs."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fairlead as fl
from fairlead.schedules import VP

DOUBLE = torch.float64


class Trunk(nn.Module):
    """Counts its rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 6).double()
        self.rows = 0

    def forward(self, x, t, style):
        self.rows += len(x)
        h = torch.tanh(self.layer(x) + style[:, None] + t.double()[:, None])
        return [h, 2 * h]


class Head(nn.Module):
    """Adds the late condition."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(6, 4).double()
        self.rows = 0

    def forward(self, features, x, t, label):
        self.rows += len(x)
        a, b = features
        return self.layer(a * b + label.double()[:, None]) + x


def models():
    trunk, head = Trunk(), Head()

    def apart(x, t, style, label):
        return head(trunk(x, t, style), x, t, label)

    shared = fl.adapters.SharedTrunk(trunk, head, ["label"])
    null = {"label": -1, "style": 0.0}
    return trunk, head, [fl.Denoiser(n, VP(), "sample", null, shape=(4,)) for n in (shared, apart)]


GIVEN = {"label": [3, 5, 3], "style": torch.tensor([0.5, 1.0, 0.5], dtype=DOUBLE)}


@pytest.mark.parametrize(
    ("guide", "trunks"),
    [
        ("none", 1),
        ("joint(['label'], 3)", 1),  # the style is in both branches
        ("compose('label', ['one', 'two'], [2, 1])", 1),
        ("cfg(3)", 2),  # null has another style
        ("nested(['style', 'label'], [2, 3])", 2),
    ],
)
def test_predictions_are_the_same_and_trunks_as_few_as_inputs(guide, trunks):
    trunk, head, pair = models()
    states = {"one": {"label": [1, 2, 3]}, "two": {"label": [4, 5, 6]}}
    options = {"guide": guide, "steps": 4, "sampler": "ddim", "dtype": DOUBLE, "states": states}
    found, rows = [], []
    for d in pair:
        trunk.rows = head.rows = 0
        found.append(fl.sample(d, GIVEN, **options))
        rows.append((trunk.rows, head.rows))
    assert_close(found[0].x, found[1].x, rtol=1e-10, atol=1e-10)
    assert torch.equal(found[0].nfe, found[1].nfe)
    assert rows[0] == (3 * 4 * trunks, rows[1][1])
    assert rows[1][0] == rows[1][1]


def test_equal_rows_share_and_others_do_not():
    trunk, _, (d, apart) = models()
    x = torch.randn(1, 4, dtype=DOUBLE).expand(4, 4)
    given = {"label": [1, 2, 3, 4], "style": torch.tensor([0.5, 1.0, 0.5, 0.5], dtype=DOUBLE)}
    t = torch.tensor([0.5, 0.5, 0.5, 0.25], dtype=DOUBLE)
    out = d(x, t, given)
    assert trunk.rows == 3
    assert_close(out, apart(x, t, given), rtol=1e-12, atol=1e-12)


def test_every_row_has_its_gradient():
    _, _, (d, apart) = models()
    x = torch.randn(2, 4, dtype=DOUBLE)
    grads = []
    for model in (d, apart):
        leaf = torch.cat([x, x]).requires_grad_()
        given = {"label": [1, 2, 3, 4], "style": torch.zeros(4, dtype=DOUBLE)}
        (gradient,) = torch.autograd.grad(model(leaf, 0.5, given).square().sum(), leaf)
        grads.append(gradient)
    assert torch.equal(*grads)


def test_no_late_condition_is_refused():
    for late in ([], "label"):
        with pytest.raises(ValueError, match="SharedTrunk: late must name at least one condition"):
            fl.adapters.SharedTrunk(Trunk(), Head(), late)
