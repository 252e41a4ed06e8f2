"""Matching channel statistics: by hand, and what they are after the rule."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import norm
from fairlead.testing import combine

seeds, scales, shares = st.integers(0, 10**6), st.floats(-2, 12), st.floats(0, 1)
shapes = st.lists(st.integers(2, 7), min_size=1, max_size=2).map(tuple)


def noise(*shape, key=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def statistics(x):
    return x.flatten(2).mean(2), x.flatten(2).std(2)


def test_by_hand():
    c, u = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[3.0, 1.0]]])
    # cfg(2): (-1, 5), mean 2 and deviation 3 sqrt 2; that of c: mean 2, sqrt 2
    assert_close(combine(fl.CFG(2.0) | fl.MatchStatistics(), c, u), c)
    half = combine(fl.CFG(2.0) | fl.MatchStatistics(0.5), c, u)
    assert_close(half, torch.tensor([[[0.0, 4.0]]]))
    given_ = fl.MatchStatistics(1.0, mean=[7.0], std=[0.0])
    assert_close(combine(fl.CFG(2.0) | given_, c, u), torch.full((1, 1, 2), 7.0))


@given(shapes, seeds, scales, shares)
def test_statistics_are_mixed(size, key, w, share):
    c, u = noise(2, 2, 3, *size, key=key)
    before = statistics(combine(fl.CFG(w), c, u))
    after = statistics(combine(fl.CFG(w) | fl.MatchStatistics(share), c, u))
    for b, a, goal in zip(before, after, statistics(c), strict=True):
        assert_close(a, b + share * (goal - b), rtol=1e-9, atol=1e-9)


@given(shapes, seeds, scales)
def test_reference_gives_its_statistics(size, key, w):
    assume(w != 1)
    c, u = noise(2, 2, 3, *size, key=key)
    reference = noise(3, 11, key=key + 1) * 4 + 2
    out = combine(fl.CFG(w) | fl.MatchStatistics.of(reference), c, u)
    mean, std = statistics(out)
    assert_close(mean, reference.mean(1).expand(2, 3), rtol=1e-9, atol=1e-9)
    assert_close(std, reference.std(1).expand(2, 3), rtol=1e-9, atol=1e-9)


@given(seeds, st.floats(1.5, 12))
def test_one_alone_leaves_the_other(key, w):
    c, u = noise(2, 2, 3, 5, key=key)
    mean, std = statistics(combine(fl.CFG(w), c, u))
    shifted = combine(fl.CFG(w) | fl.MatchStatistics(mean=[1.0, 2.0, 3.0]), c, u)
    assert_close(statistics(shifted)[0], torch.tensor([[1.0, 2.0, 3.0]] * 2).double())
    assert_close(statistics(shifted)[1], std)
    spread = combine(fl.CFG(w) | fl.MatchStatistics(std=[1.0, 2.0, 3.0]), c, u)
    assert_close(statistics(spread)[0], mean)
    assert_close(statistics(spread)[1], torch.tensor([[1.0, 2.0, 3.0]] * 2).double())


@given(shapes, seeds, scales, shares)
def test_share_zero_and_scale_one_change_nothing(size, key, w, share):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    c, u = noise(2, 2, 3, *size, key=key)
    assert torch.equal(combine(fl.CFG(w) | fl.MatchStatistics(0.0), c, u), combine(fl.CFG(w), c, u))
    assert torch.equal(combine(fl.CFG(1.0) | fl.MatchStatistics(share), c, u), c)


@given(shapes, seeds, scales)
def test_the_stand_ins_bound_what_the_paper_wants_bounded(size, key, w):
    """The other two readings are settings of older rules: deviation and length of all channels."""
    c, u = noise(2, 2, 3, *size, key=key)
    whole = combine(fl.CFG(w) | fl.Rescale(1.0), c, u)
    assert_close(whole.flatten(1).std(1), c.flatten(1).std(1))
    length = combine(fl.CFG(w) | fl.Renorm(grow=True, space="sample"), c, u)
    assert_close(norm(length), norm(c))


def test_constant_channel_moves_and_stays_constant():
    c, u = torch.ones(1, 1, 4), torch.zeros(1, 1, 4)
    out = combine(fl.CFG(3.0) | fl.MatchStatistics(mean=[-1.0], std=[5.0]), c, u)
    assert_close(out, torch.full((1, 1, 4), -1.0))


def test_errors():
    with pytest.raises(ValueError, match=r"match_statistics: share must be in \[0, 1\], got 2"):
        fl.MatchStatistics(2.0)
    with pytest.raises(ValueError, match=r"match_statistics: std must be in \[0, inf\), got -1"):
        fl.MatchStatistics(std=[-1.0])
    with pytest.raises(ValueError, match="std must have 2 numbers, as many as mean, got 1"):
        fl.MatchStatistics(mean=[1.0, 2.0], std=[1.0])
    with pytest.raises(ValueError, match="mean must be a list of one number a channel, got 3"):
        fl.MatchStatistics(mean=3.0)
    c, u = noise(2, 1, 3, 4)
    with pytest.raises(ValueError, match="mean must have 3 numbers, one a channel, got 2"):
        combine(fl.CFG(2.0) | fl.MatchStatistics(mean=[1.0, 2.0]), c, u)
    with pytest.raises(ValueError, match="a channel must hold at least two numbers"):
        combine(fl.CFG(2.0) | fl.MatchStatistics(), c[..., :1], u[..., :1])
