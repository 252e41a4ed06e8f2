"""Thresholding of every branch: by hand, against the sum of clipped branches, and the errors."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.weight_schedules.branch_threshold import Clipped
from fairlead.testing import tiny_denoiser


def test_by_hand():
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0, -4.0], [0.1, 0.2, 0.0, 0.0, -0.3]])
    half = Clipped(0.5, 0.0, 10.0)(x, None)  # the medians of absolute values are 2 and 0.1
    assert_close(half, torch.tensor([[0.0, 1.0, 2.0, 2.0, -2.0], [0.1, 0.1, 0.0, 0.0, -0.1]]))
    assert_close(Clipped(0.5, 0.25, 1.5)(x, None)[0], torch.tensor([0.0, 1.0, 1.5, 1.5, -1.5]))
    assert_close(Clipped(0.5, 0.25, 1.5)(x, None)[1], torch.tensor([0.1, 0.2, 0.0, 0.0, -0.25]))


def test_every_branch_is_clipped_before_they_are_combined():
    d, x = tiny_denoiser(), torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    label = {"label": torch.tensor([1, 2])}
    guide = fl.CFG(3.0) | fl.BranchThreshold(0.7, floor=0.1)
    out = fl.sample(d, label, guide=guide, x=x, sampler="ddim", steps=1)
    level, clip = d.schedule.grid(1)[0], Clipped(0.7, 0.1, float("inf"))
    c, u = (clip(d(x, level, {"label": v}), None) for v in (label["label"], [10, 10]))
    assert_close(out.x, u + 3 * (c - u))
    assert out.nfe.tolist() == [2, 2]


def test_neutral_and_errors():
    d, label = tiny_denoiser(), {"label": [1, 2]}
    options = {"sampler": "ddim", "steps": 3}
    plain = fl.sample(d, label, guide="cfg(3)", **options).x
    kept = fl.sample(d, label, guide="cfg(3) | branch_threshold(1, floor=0)", **options).x
    assert torch.equal(plain, kept)
    with pytest.raises(ValueError, match=r"floor must be at most ceiling = 0.5, got 1.0"):
        fl.BranchThreshold(ceiling=0.5)
    with pytest.raises(ValueError, match="inside the sum"):
        (fl.CFG(3.0) | fl.BranchThreshold()) + fl.PAG(2.0)
