"""Policies: heads by hand, their product, memories and errors; and codes written side by side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead import recipes
from fairlead.autoregressive import combine_heads


def heads(seed, batch=3, **sizes):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 2 * torch.randn(batch, *size, generator=generator, dtype=torch.float64)
        for name, size in sizes.items()
    }


SIZES = {"buttons": (8,), "camera": (2, 5)}


@given(st.floats(0, 8), st.integers(0, 99))
def test_every_leaf_by_hand(s, seed):
    cond, null = heads(seed, **SIZES), heads(seed + 1000, **SIZES)
    out = combine_heads(recipes.steve1(s), {"cond": cond, "null": null})
    for name, value in out.items():
        c, u = cond[name].log_softmax(-1), null[name].log_softmax(-1)
        assert_close(value, ((1 + s) * c - s * u).log_softmax(-1))
        assert_close(value.logsumexp(-1), torch.zeros_like(value[..., 0]))


def test_the_conditional_policy_at_no_strength():
    cond, null = heads(0, **SIZES), heads(1, **SIZES)
    out = combine_heads(recipes.steve1(0.0), {"cond": cond})  # no second copy is asked for
    for name, value in out.items():
        assert_close(value, cond[name].log_softmax(-1))
    out = combine_heads("cfg(0)", {"cond": cond, "null": null})
    assert_close(out["camera"], null["camera"].log_softmax(-1))


def test_heads_are_as_the_law_of_the_whole_action():
    """Tempering the joint of independent heads is tempering each of them."""
    sizes = {"a": (3,), "b": (4,)}
    given_ = {name: heads(i, **sizes) for i, name in enumerate(("cond", "null"))}
    joint = {
        name: (h["a"].log_softmax(-1)[:, :, None] + h["b"].log_softmax(-1)[:, None]).flatten(1)
        for name, h in given_.items()
    }
    whole = fl.combine("cfg(7)", joint, domain="logprob").reshape(3, 3, 4)
    out = combine_heads("cfg(7)", given_)
    assert_close(whole, out["a"][:, :, None] + out["b"][:, None])


def test_a_strength_for_each_of_a_batch():
    given_ = {name: heads(i, **SIZES) for i, name in enumerate(("cond", "null"))}
    together = combine_heads(recipes.steve1([0.0, 6.0, 7.0]), given_)
    for i, s in enumerate((0.0, 6.0, 7.0)):
        row = {name: {k: v[[i]] for k, v in h.items()} for name, h in given_.items()}
        alone = combine_heads(recipes.steve1(s), row)
        for name in SIZES:
            assert_close(together[name][[i]], alone[name])


def test_schedules_over_an_episode():
    given_ = {name: heads(i, **SIZES) for i, name in enumerate(("cond", "null"))}
    runs = {name: fl.Run(steps=2) for name in SIZES}
    guide = "cfg(7) | interval(0, 0.5)"
    first, second = (combine_heads(guide, given_, runs=runs) for _ in range(2))
    for name in SIZES:
        assert_close(first[name], combine_heads("cfg(7)", given_)[name])
        assert_close(second[name], given_["cond"][name].log_softmax(-1))


def test_heads_that_differ_are_named():
    with pytest.raises(
        ValueError, match=r"same heads, got \{'cond': \['a', 'b'\], 'null': \['a'\]"
    ):
        combine_heads("cfg(2)", {"cond": heads(0, a=(3,), b=(4,)), "null": heads(1, a=(3,))})


def test_codes_in_a_delay_pattern():
    """Two codebooks, the second one step behind: rows of a step are combined each by itself."""
    w, size = 3.0, 3
    generator = torch.Generator().manual_seed(0)
    # p(x1, y1, x2 | c): x1, then (x2, y1) from x1 side by side, for two conditions
    joint = torch.rand(2, size, size, size, generator=generator, dtype=torch.float64)
    joint = joint / joint.sum((1, 2, 3), keepdim=True)

    def rows(p):  # conditionals of the two codes that share the second step
        prefix = p.sum((1, 2), keepdim=True)
        return torch.stack([(p / prefix).sum(2), (p / prefix).sum(1)], 1)  # (x1, code, value)

    cond, null = rows(joint[0]), rows(joint.mean(0))
    guided = fl.combine(f"cfg({w})", {"cond": cond.log(), "null": null.log()}, domain="logprob")
    for code in range(2):
        powers = cond[:, code] ** w * null[:, code] ** (1 - w)
        assert_close(guided[:, code].exp(), powers / powers.sum(-1, keepdim=True))
