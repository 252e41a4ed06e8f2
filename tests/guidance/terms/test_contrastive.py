"""Contrastive decoding, DExperts and their filters: formulas, limits, what is kept."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl

seeds = st.integers(0, 2**31)


def logs(seed, *names):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(2, 9, dtype=torch.float64, generator=generator).log_softmax(-1)
        for n in names
    }


def tokens(guide, values):
    return fl.combine(guide, values, domain="logprob")


@given(seeds, st.floats(0, 2), st.floats(0.3, 2))
def test_the_formula(seed, lam, tau):
    v = logs(seed, "cond", "amateur")
    expected = (v["cond"] - lam * (v["amateur"] / tau).log_softmax(-1)).log_softmax(-1)
    assert_close(tokens(f"contrastive({lam}, tau={tau})", v), expected)


@given(seeds)
def test_equal_models_leave_a_uniform_choice(seed):
    v = logs(seed, "cond")
    v["amateur"] = v["cond"]
    out = tokens("contrastive(1) | plausible(0.2)", v).exp()
    kept = v["cond"] >= v["cond"].amax(-1, keepdim=True) + torch.tensor(0.2).log()
    assert_close(out, kept / kept.sum(-1, keepdim=True).double())


@given(seeds, st.floats(-1, 4))
def test_experts_in_their_limits(seed, a):
    v = logs(seed, "cond", "expert", "anti")
    out = tokens(f"dexperts({a})", v)
    assert_close(out, (v["cond"] + a * (v["expert"] - v["anti"])).log_softmax(-1))
    same = {**v, "anti": v["expert"]}
    assert_close(tokens(f"dexperts({a})", same), v["cond"])
    base = {**v, "anti": v["cond"]}
    as_cfg = tokens(f"cfg({a})", {"cond": v["expert"], "null": v["cond"]})
    assert_close(tokens(f"dexperts({a})", base), as_cfg)
    base = {**v, "expert": v["cond"]}
    as_cfg = tokens(f"cfg({1 + a})", {"cond": v["cond"], "null": v["anti"]})
    assert_close(tokens(f"dexperts({a})", base), as_cfg)


@given(seeds, st.floats(0.05, 0.99))
def test_a_nucleus_is_the_fewest_tokens(seed, p):
    v = logs(seed, "cond", "null")
    out = tokens(f"cfg(3) | nucleus({p})", v).exp()
    for row, base in zip(out, v["cond"].exp(), strict=True):
        kept = base[row > 1e-12]
        assert kept.sum() >= p - 1e-9
        assert kept.sum() - kept.min() < p
        assert base.argmax() in (row > 1e-12).nonzero()


def test_by_hand():
    v = {
        "cond": torch.tensor([[0.5, 0.3, 0.2]]).log(),
        "amateur": torch.tensor([[0.8, 0.1, 0.1]]).log(),
    }
    out = tokens("contrastive(1)", v).exp()
    ratios = torch.tensor([[0.625, 3.0, 2.0]])
    assert_close(out, ratios / ratios.sum())
    out = tokens("contrastive(1) | plausible(0.5)", v).exp()
    assert_close(out, torch.tensor([[0.625, 3.0, 0.0]]) / 3.625)


def test_a_token_that_all_exclude_stays_excluded():
    v = {
        "cond": torch.tensor([[0.6, 0.4, 0.0]]).log(),
        "null": torch.tensor([[0.5, 0.2, 0.3]]).log(),
    }
    assert tokens("cfg(2) | nucleus(0.99)", v)[0, 2] < -1e5
