"""Perp-Neg: by hand and the exact identities."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import inner, norm
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import pairs, tiny_denoiser

scales = st.floats(-2, 20)
triples = st.tuples(pairs(), pairs()).map(lambda two: (*two[0], two[1][0]))


def combine(guide, c, u, n, **options):
    return fl.combine(guide, {"cond": c, "null": u, "negative": n}, **options)


def apart(c, u):
    return bool((norm(c - u) > 1e-2).all())


def test_by_hand():
    c, u, n = torch.tensor([[[3.0, 1.0]], [[1.0, 1.0]], [[2.0, 4.0]]]).unbind()
    # d = (2, 0), d_k = (1, 3) of which (0, 3) is perpendicular: y = u + 4 d - 2 (0, 3)
    assert_close(combine(fl.CFG(4.0) + fl.PerpNeg(2.0), c, u, n), torch.tensor([[9.0, -5.0]]))
    assert_close(combine(fl.PerpNeg(-1.0), c, u, n), torch.tensor([[3.0, 4.0]]))


@given(triples, scales)
def test_zero_is_the_rest_of_the_guide_to_the_bit(cun, w):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    c, u, _ = cun
    out = fl.combine(fl.CFG(w) + fl.PerpNeg(0.0), {"cond": c, "null": u})
    assert torch.equal(out, fl.combine(fl.CFG(w), {"cond": c, "null": u}))


@given(triples, scales, scales)
def test_share_along_the_condition_is_that_of_cfg(cun, w, s):
    c, u, n = cun
    assume(apart(c, u))
    y = combine(fl.CFG(w) + fl.PerpNeg(s), c, u, n)
    # terms of up to 20 times 400 times 40 cancel
    assert_close(inner(y - u, c - u), w * inner(c - u, c - u), rtol=1e-9, atol=1e-8)


@given(pairs(), scales, scales, st.floats(-3, 3))
def test_parallel_negative_adds_nothing(cu, w, s, k):
    c, u = cu
    assume(apart(c, u))
    y = combine(fl.CFG(w) + fl.PerpNeg(s), c, u, u + k * (c - u))
    assert_close(y, combine(fl.CFG(w), c, u, u), rtol=1e-9, atol=1e-9)


@given(triples, scales, scales)
def test_orthogonal_negative_counts_fully(cun, w, s):
    c, u, n = cun
    assume(apart(c, u))
    d = c - u
    n = n - d * inner(n - u, d) / inner(d, d)
    y = combine(fl.CFG(w) + fl.PerpNeg(s), c, u, n)
    assert_close(y, u + w * d - s * (n - u), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("space", ["epsilon", "v_prediction", "flow_prediction"])
@given(triples, scales, scales, st.floats(0.1, 0.9))
def test_the_same_in_every_space(space, cun, w, s, t):
    assume(apart(*cun[:2]))
    x, level = cun[1].flip(0) + 1, fl.schedules.RectifiedFlow().level(t)
    there = [from_x0(d, x, level.alpha, level.sigma, space) for d in cun]
    guide = fl.CFG(w) + fl.PerpNeg(s)
    back = to_x0(combine(guide, *there), x, level.alpha, level.sigma, space)
    assert_close(back, combine(guide, *cun), rtol=1e-8, atol=1e-8)


def test_several_negatives_add_up():
    generator = torch.Generator().manual_seed(0)
    c, u, a, b = torch.randn(4, 2, 3, 4, generator=generator, dtype=torch.float64)
    values = {"cond": c, "null": u, "a": a, "b": b}
    one, other = fl.PerpNeg(2.0, against="a"), fl.PerpNeg(3.0, against="b")
    both = fl.combine(fl.CFG(4.0) + one + other, values)
    plain = fl.combine(fl.CFG(4.0), values)
    apart = [fl.combine(fl.CFG(4.0) + term, values) - plain for term in (one, other)]
    assert_close(both, plain + apart[0] + apart[1])


def test_condition_equal_to_null_leaves_the_whole_negative():
    u, n = torch.zeros(1, 2), torch.ones(1, 2)
    assert_close(combine(fl.PerpNeg(2.0), u, u, n), -2 * n)


def test_costs_three_evaluations_and_names_its_state():
    options = {"guide": fl.CFG(4.0) + fl.PerpNeg(4.0), "sampler": "ddim", "steps": 3, "n": 2}
    label = {"label": [1, 2]}
    out = fl.sample(tiny_denoiser(), label, negative={"label": [3, 3]}, **options)
    assert out.nfe.tolist() == [9, 9]
    with pytest.raises(ValueError, match="negative"):
        fl.sample(tiny_denoiser(), label, **options)


def test_scale_per_sample_is_a_loop():
    generator = torch.Generator().manual_seed(0)
    c, u, n = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
    scales = (0.0, 1.0, 3.0)
    together = combine(fl.CFG(2.0) + fl.PerpNeg(scales), c, u, n)
    for i, s in enumerate(scales):
        one = (v[i : i + 1] for v in (c, u, n))
        alone = combine(fl.CFG(2.0) + fl.PerpNeg(s), *one)
        assert_close(together[i : i + 1], alone, rtol=1e-13, atol=1e-13)


def test_bad_value_is_named():
    with pytest.raises(ValueError, match=r"perp_neg: s must be in .+, got nan"):
        fl.PerpNeg(float("nan"))
