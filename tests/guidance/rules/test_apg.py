"""APG: values worked by hand, the exact identities, and diffusers' function beside it."""

from math import sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import inner, norm, project
from fairlead.prediction import from_x0, to_x0
from fairlead.testing import combine, pairs

C, U = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, -2.0]])  # delta = (2, 0) + (0, 2)
scales = st.floats(-2, 20)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (fl.APG(eta=1.0), [5.0, 4.0]),  # plain CFG at w = 3
        (fl.APG(eta=0.5), [3.0, 4.0]),
        (fl.APG(eta=0.0), [1.0, 4.0]),  # the orthogonal part alone
        (fl.APG(eta=0.0, r=sqrt(2)), [1.0, 2.0]),  # ||delta|| = sqrt(8), halved first
        (fl.APG(eta=0.0, form="from_null"), [-1.0, 4.0]),  # U + 3 (0, 2)
        (fl.APG(eta=0.0, form="one_more"), [1.0, 6.0]),  # C + 3 (0, 2)
    ],
)
def test_worked_by_hand(rule, expected):
    assert_close(combine(fl.CFG(3.0) | rule, C, U), torch.tensor([expected]))


@given(pairs(), scales)
def test_neutral_is_cfg_to_the_bit(cu, w):
    assume(w - 1 != -1)  # there plain CFG takes the null prediction as it is, without arithmetic
    assert torch.equal(combine(fl.CFG(w) | fl.APG(eta=1.0), *cu), combine(fl.CFG(w), *cu))


@given(pairs(), st.floats(-2, 2), st.floats(0.1, 10), st.floats(-0.9, 0.9))
def test_scale_one_is_conditional_to_the_bit(cu, eta, r, beta):
    assert torch.equal(combine(fl.CFG(1.0) | fl.APG(eta, r, beta), *cu), cu[0])


@given(pairs(), scales)
def test_without_the_parallel_part_lengths_add_in_squares(cu, w):
    out = combine(fl.CFG(w) | fl.APG(eta=0.0), *cu)
    scale = (norm(cu[0]) * norm(out - cu[0])).clamp(min=1)
    assert (inner(out - cu[0], cu[0]).abs() <= 1e-12 * scale).all()
    assert_close(norm(out) ** 2, norm(cu[0]) ** 2 + norm(out - cu[0]) ** 2)
    assert (norm(out) >= norm(cu[0]) * (1 - 1e-12)).all()


@given(pairs(), scales, st.floats(0.1, 10), st.floats(-2, 2))
def test_cap_bounds_what_is_added(cu, w, r, eta):
    added = combine(fl.CFG(w) | fl.APG(eta=eta, r=r), *cu) - cu[0]
    assert (norm(added) <= abs(w - 1) * r * max(1, abs(eta)) * (1 + 1e-9) + 1e-12).all()


def test_zero_prediction_has_no_parallel_part():
    assert_close(combine(fl.CFG(3.0) | fl.APG(eta=0.0), 0 * C, U), -2 * U)


def test_zero_update_stays_zero_under_a_cap():
    assert torch.equal(combine(fl.CFG(3.0) | fl.APG(eta=0.0, r=1.0), C, C), C)


def test_momentum_is_a_geometric_sum():
    run = fl.Run()
    for w, kept in [(3.0, 1.0), (5.0, 0.5), (2.0, 0.75)]:  # sums of (-1/2)^k, whatever w
        out = combine(fl.CFG(w) | fl.APG(eta=1.0, beta=-0.5), C, U, run)
        assert_close(out, C + (w - 1) * kept * (C - U))


def test_momentum_keeps_the_uncapped_value():
    run = fl.Run()
    rule = fl.CFG(2.0) | fl.APG(eta=1.0, r=1.0, beta=0.5)
    # m = 8^(1/2), then (3/2) 8^(1/2): both longer than 1, so both steps add unit length
    for _ in range(2):
        assert_close(norm(combine(rule, C, U, run) - C), torch.ones(1, 1))
    # the third delta is opposite: m = -delta + 3/4 delta, a quarter, of length sqrt(8)/4 < 1
    out = combine(rule, U, C, run)
    assert_close(out, U + (U - C) + 0.75 * (C - U))


def test_without_momentum_it_has_no_memory():
    run, rule = fl.Run(), fl.CFG(3.0) | fl.APG(r=1.0)
    combine(rule, U, C, run)
    assert torch.equal(combine(rule, C, U, run), combine(rule, C, U))


@pytest.mark.parametrize("space", ["epsilon", "v_prediction", "flow_prediction"])
@given(pairs(), st.floats(1.5, 8), st.floats(0.1, 0.9))
def test_other_space_is_the_rule_on_that_prediction(space, cu, w, t):
    x, level = cu[1].flip(0) + 1, fl.schedules.RectifiedFlow().level(t)
    at = {"x": x, "t": level}
    there = [from_x0(d, x, level.alpha, level.sigma, space) for d in cu]
    assume(bool((norm(there[0]) > 1e-3).all()))
    expected = combine(fl.CFG(w) | fl.APG(r=2.0), *there)
    back = to_x0(expected, x, level.alpha, level.sigma, space)
    out = combine(fl.CFG(w) | fl.APG(r=2.0, space=space), *cu, **at)
    assert_close(out, back, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("form", ["paper", "from_null", "one_more"])
@pytest.mark.parametrize("beta", [None, -0.5])
def test_equals_diffusers_function(form, beta):
    guiders = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    generator = torch.Generator().manual_seed(0)
    buffer = None if beta is None else guiders.MomentumBuffer(beta)
    run, w = fl.Run(), 4.0
    rule = fl.CFG(w) | fl.APG(eta=0.3, r=2.0, beta=beta or 0.0, form=form)
    for _ in range(3):
        c, u = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
        theirs = guiders.normalized_guidance(
            c,
            u,
            w - 1 if form == "paper" else w,
            buffer,
            eta=0.3,
            norm_threshold=2.0,
            use_original_formulation=form != "from_null",
        )
        assert_close(combine(rule, c, u, run), theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("name", "value"), [("r", 0.0), ("beta", 1.0), ("eta", float("nan"))])
def test_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=rf"apg: {name} must be in .+, got {value}"):
        fl.APG(**{name: value})


def test_unknown_form_and_space_are_named():
    with pytest.raises(ValueError, match="apg: form must be one of paper, from_null"):
        fl.APG(form="papre")
    with pytest.raises(ValueError, match="apg: space must be one of sample, epsilon"):
        fl.APG(space="eps")


@pytest.mark.parametrize("dim", [1, -1])
def test_each_position_for_itself_is_diffusers_norm_dim(dim):
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    theirs = normalized_guidance(
        c, u, 4.0, None, 0.3, 1.5, use_original_formulation=False, norm_dim=[dim]
    )
    guide = fl.CFG(4.0) | fl.APG(eta=0.3, r=1.5, form="from_null", dim=dim)
    assert_close(combine(guide, c, u), theirs, rtol=1e-12, atol=1e-12)
    whole = combine(fl.CFG(4.0) | fl.APG(eta=0.3, r=1.5, form="from_null"), c, u)
    assert not torch.allclose(whole, theirs, atol=1e-3)


def test_one_position_alone_is_a_sample_alone():
    c, u = torch.randn(2, 3, 4, 1, generator=torch.Generator().manual_seed(0))
    one = combine(fl.CFG(4.0) | fl.APG(r=1.0, dim=1), c, u)
    assert_close(one, combine(fl.CFG(4.0) | fl.APG(r=1.0), c, u))


def test_first_steps_only_feed_the_momentum():
    """The mixed form: CFG at 3.5 for two of four steps, then APG at 10, one buffer for all."""
    text = "(cfg(3.5) | interval(0, 0.5)) + (cfg(10) | interval(0.5, 1)) | apg(beta=-0.5, after=2)"
    run, m = fl.Run(steps=4), 0.0
    generator = torch.Generator().manual_seed(0)
    for i in range(4):
        c, u = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
        out = combine(text, c, u, run)
        m = c - u - 0.5 * m
        if i < 2:
            assert_close(out, u + 3.5 * (c - u))
        else:
            assert_close(out, c + 9 * (m - project(m, onto=c)))


def test_bad_dimension_is_named():
    with pytest.raises(ValueError, match="apg: dim must be 1 or more, or negative, got 0"):
        fl.APG(dim=0)
    with pytest.raises(ValueError, match=r"apg: dim must be in 1..1 or -1..-1 .* got 2"):
        combine(fl.CFG(3.0) | fl.APG(r=1.0, dim=2), C, U)
    with pytest.raises(ValueError, match=r"apg: after must be in \[0, inf\), got -1"):
        fl.APG(after=-1)
