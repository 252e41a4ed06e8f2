"""Response masks: by hand, per sample, and the errors."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead import recipes
from fairlead.testing import combine


def test_by_hand():
    c = torch.tensor([[[1.0, -2.0, 3.0, 0.5], [0.0, 2.0, 0.0, 0.5]]])  # sums 1, 4, 3, 1
    out = combine("cfg(3) | response(0.5)", c, 0 * c)
    # the median is 2: the second and third position are guided, w - 1 = 2
    assert_close(out, c + 2 * c * torch.tensor([0.0, 1.0, 1.0, 0.0]))
    one = combine("cfg(3) | response(0.75, dim=None)", c, 0 * c)
    # numbers by size: the third quartile of 0, 0, .5, .5, 1, 2, 2, 3 is 2
    assert_close(one, c + 2 * c * (c.abs() >= 2))


def test_each_sample_has_its_own_quantile():
    c = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = c * torch.tensor([1.0, 10.0, 0.1]).double().reshape(3, 1, 1, 1)
    for x in (c, scaled):
        out = combine("cfg(3) | response(0.8)", x, 0 * x)
        share = (out != x).any(1).double().mean((1, 2))
        assert_close(share, torch.full((3,), 0.2).double(), atol=0.03, rtol=0)
    assert torch.equal(combine("cfg(3) | response(0)", c, 0 * c), combine("cfg(3)", c, 0 * c))


def test_the_sign_of_the_weight_does_not_move_the_mask():
    c = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    up, down = (combine(f"cfg({w}) | response(0.6)", c, 0 * c) - c for w in (2.0, 0.0))
    assert_close(up, -down)


def test_edits_by_hand():
    generator = torch.Generator().manual_seed(0)
    names = ("cond", "none", "text=a", "text=b")
    v = dict(zip(names, torch.randn(4, 1, 2, 6, generator=generator).double(), strict=True))
    out = fl.combine(recipes.edits("text", ["a", "b"], [5.0, -3.0], q=0.5), v)
    expected = v["none"].clone()
    for state, w in (("text=a", 5.0), ("text=b", -3.0)):
        d = v[state] - v["none"]
        size = d.abs().sum(1, keepdim=True)
        expected = expected + w * d * (size >= size.quantile(0.5))
    assert_close(out, expected)
    assert fl.guide(str(recipes.edits("text", ["a"], [5.0]))) == recipes.edits("text", ["a"], [5.0])


def test_modalities():
    v = {k: torch.tensor([[x]]) for k, x in {"cond": 1.0, "null": 2.0, "isolated": 4.0}.items()}
    out = fl.combine(recipes.modalities(7.0, 3.0), v)
    assert_close(out, torch.tensor([[1.0 + 6 * (1 - 2) + 2 * (1 - 4)]]))
    assert torch.equal(fl.combine(recipes.modalities(1.0, 1.0), {"cond": v["cond"]}), v["cond"])


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"response: q must be in \[0, 1\), got 1.0"):
        fl.Response(1.0)
    with pytest.raises(ValueError, match="response: dim must be 1 or more"):
        fl.Response(0.5, dim=0)
    with pytest.raises(ValueError, match="edits: weights must be a list of one for each"):
        recipes.edits("text", ["a"], [1.0, 2.0])
