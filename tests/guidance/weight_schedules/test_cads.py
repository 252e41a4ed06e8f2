"""CADS and dynamic CFG: the share kept, the mixed condition, whom it reaches."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.weight_schedules.cads import Annealed, kept
from fairlead.testing import pairs, tiny_denoiser

LABEL = {"label": [3, 5]}
shares, sizes = st.floats(0, 1), st.floats(0, 3)


@pytest.mark.parametrize(
    ("t", "g"), [(0.0, 1), (0.6, 1), (0.65, 5 / 6), (0.75, 0.5), (0.9, 0), (1.0, 0)]
)
def test_share_by_hand(t, g):
    assert kept(t, 0.6, 0.9) == pytest.approx(g)


def test_equal_thresholds_are_a_switch():
    assert [kept(t, 0.5, 0.5) for t in (0.4, 0.5, 0.6)] == [1.0, 1.0, 0.0]


def test_mix_by_hand():
    c, n = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0]])
    # sqrt(1/4) c + 1 sqrt(3/4) n = (1/2 + sqrt 3, 3/2); order turned, so restat gives (3, 1)
    noisy = torch.tensor([[0.5 + 3**0.5, 1.5]])
    assert_close(mix(0.25, 1.0, 0.0, (c, n)), noisy)
    assert_close(mix(0.25, 1.0, 1.0, (c, n)), torch.tensor([[3.0, 1.0]]))
    half = (noisy + torch.tensor([[3.0, 1.0]])) / 2
    assert_close(mix(0.25, 1.0, 0.5, (c, n)), half)


def mix(g, s, psi, cn):
    return Annealed(g, s, psi, "").mix(*cn)


@given(pairs(), sizes, shares)
def test_the_whole_condition_is_kept_at_g_one(cn, s, psi):
    assume(bool((cn[0].std(1) > 1e-3).all()))
    assert_close(mix(1.0, s, psi, cn), cn[0], rtol=1e-9, atol=1e-9)


@given(pairs(), st.floats(0.01, 1))
def test_without_noise_the_statistics_restore_it(cn, g):
    assume(bool((cn[0].std(1) > 1e-3).all()))
    assert_close(mix(g, 0.0, 1.0, cn), cn[0], rtol=1e-8, atol=1e-8)


@given(pairs(), st.floats(0.01, 0.99), shares)
def test_without_noise_and_restoring_it_shrinks(cn, g, psi):
    assume(bool((cn[0].std(1) > 1e-3).all()))
    expected = (psi + (1 - psi) * g**0.5) * cn[0]
    assert_close(mix(g, 0.0, psi, cn), expected, rtol=1e-8, atol=1e-8)


@given(pairs(), shares, sizes)
def test_statistics_per_sample_are_those_of_the_condition(cn, g, s):
    c, n = cn
    noisy = g**0.5 * c + s * (1 - g) ** 0.5 * n
    assume(bool((noisy.std(1) > 1e-3).all()))
    made = mix(g, s, 1.0, cn)
    assert_close(made.mean(1), c.mean(1), rtol=1e-8, atol=1e-8)
    assert_close(made.std(1), c.std(1), rtol=1e-8, atol=1e-8)


@given(pairs(), pairs(), st.floats(0.1, 3))
def test_at_g_zero_only_mean_and_deviation_leak(cn, other, s):
    (c, n), d = cn, other[0]
    assume(all(bool((v.std(1) > 1e-2).all()) for v in (c, n, d)))

    def centred(v):
        return (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)

    one, two = mix(0.0, s, 1.0, (c, n)), mix(0.0, s, 1.0, (d, n))
    assert_close(centred(one), centred(two), rtol=1e-7, atol=1e-7)
    assert torch.equal(mix(0.0, s, 0.0, (c, n)), mix(0.0, s, 0.0, (d, n)))


def test_constant_condition_stays_finite():
    made = mix(0.5, 0.0, 1.0, (torch.ones(1, 4), torch.zeros(1, 4)))
    assert_close(made, torch.ones(1, 4))


@pytest.mark.parametrize(("apply_to", "moved"), [("cond", [0]), ("null", [1]), ("both", [0, 1])])
def test_whom_it_reaches(apply_to, moved):
    d, seen = tiny_denoiser(), []
    d.network.register_forward_pre_hook(lambda _, a, k: seen.append(k["label"]), with_kwargs=True)
    guide = fl.CFG(3.0) | fl.CADS(s=0.5, apply_to=apply_to)
    fl.sample(d, LABEL, guide=guide, steps=10, sampler="ddim")
    clean = [d.network.label(torch.tensor(v)) for v in ([3, 5], [10, 10])]
    for step, label in enumerate(seen):
        label = label if label.is_floating_point() else d.network.label(label)
        for part in (0, 1):
            same = torch.allclose(label[2 * part : 2 * part + 2], clean[part], atol=1e-5)
            # t = 1 - i/10 lies above tau1 = 0.6 in the steps 0 to 3
            assert same == (part not in moved or step >= 4), (step, part)


def test_branches_that_share_the_condition_share_the_noise():
    d, seen = tiny_denoiser(), []
    d.network.register_forward_pre_hook(lambda _, a, k: seen.append(k["label"]), with_kwargs=True)
    fl.sample(d, LABEL, guide="pag(2) | cads()", steps=4, sampler="heun")
    assert torch.equal(seen[0][:2], seen[0][2:])
    assert torch.equal(seen[0], seen[1])  # both stages of a step
    assert not torch.equal(seen[0], seen[2])  # but anew in the next, which has its own g too


def test_inside_a_sum_it_is_refused():
    with pytest.raises(ValueError, match="changes the base branch for one summand only"):
        fl.guide("(cfg(3) | cads()) + pag(2)")


def test_dynamic_weights_by_hand():
    d = tiny_denoiser()
    out = fl.sample(d, LABEL, guide="cfg(5) | dynamic_cfg()", steps=10, sampler="ddim")
    costs = [[b.name for b in e.wanted] for e in out.report.entries]
    assert costs == [["null"]] * 2 + [["cond", "null"]] * 8  # g = 0 at t = 1, 0.9
    one = fl.sample(d, LABEL, guide="cfg(5) | dynamic_cfg(1, 1)", steps=10, sampler="ddim")
    assert torch.equal(one.x, fl.sample(d, LABEL, guide="cfg(5)", steps=10, sampler="ddim").x)


def test_thresholds_in_the_wrong_order_are_named():
    for text in ("cads", "dynamic_cfg"):
        message = rf"{text}: tau1 must be at most tau2 = 0\.5, got 0\.6"
        with pytest.raises(ValueError, match=message):
            fl.guide(f"cfg(3) | {text}(0.6, 0.5)")
    with pytest.raises(ValueError, match="cads: apply_to must be one of cond, null, both"):
        fl.CADS(apply_to="all")
