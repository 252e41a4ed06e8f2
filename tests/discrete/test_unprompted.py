"""Guidance by a masked prompt, adaptive re-masking, and likelihoods, against exact tables."""

from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.discrete import Masked, TokenDenoiser, Uniform, log_likelihood
from fairlead.exact import TokenTable, golden_tokens, token_law

TOY = golden_tokens()
C = {"label": 0}
MASKED = TOY.denoiser(Masked(2, eps=0.0))
NOWHERE = {"masks": {"prompt": [0.0, 0.0]}}
ONE_BY_ONE = "vq('uniform', per=1, leftover=False)"


def tempered(c, u, w):
    p = c**w * u ** (1 - w)
    return p / p.sum(-1, keepdim=True)


def three_tokens():
    joint = torch.rand(1, 2, 2, 2, generator=torch.Generator().manual_seed(1)).double() + 0.05
    return TokenTable(joint / joint.sum(), torch.ones(1))


def clean(law, k=2, length=2):
    return law.reshape(*[k + 1] * length)[(slice(0, k),) * length]


@pytest.mark.parametrize("w", [0.0, 2.0, 3.0])
def test_answer_of_two_tokens_is_the_average_over_orders(w):
    table = three_tokens()
    d = table.denoiser(Masked(2, eps=0.0))
    law = table.laws[0].reshape(2, 2, 2)
    z = torch.tensor([1, 2, 2])
    out = token_law(
        d, C, guide=f"unprompted({w})", sampler=ONE_BY_ONE, steps=2, z=z,
        masks={"prompt": [1.0, 0.0, 0.0]},
    )  # fmt: skip
    given, free = law[1] / law[1].sum(), law.sum(0)
    expected = torch.zeros(2, 2).double()
    for c, u, back in ((given, free, False), (given.T, free.T, True)):
        first = tempered(c.sum(1), u.sum(1), w)
        later = tempered(c / c.sum(1, keepdim=True), u / u.sum(1, keepdim=True), w)
        joint = first[:, None] * later
        expected += (joint.T if back else joint) / 2
    assert_close(out.reshape(3, 3, 3)[1, :2, :2], expected)


@pytest.mark.parametrize("w", [1.0, 2.0, 4.0])
def test_masking_all_that_is_written_again_guides_by_the_other_tokens(w):
    law = TOY.laws[0].reshape(2, 2)
    out = token_law(
        MASKED, C, guide=f"unprompted({w}, remask=1)", sampler=ONE_BY_ONE, steps=2, **NOWHERE
    )
    expected = torch.zeros(2, 2).double()
    for p, back in ((law, False), (law.T, True)):
        first = p.sum(1)  # nothing is written yet: both branches are the same
        later = tempered(p / p.sum(1, keepdim=True), p.sum(0).expand(2, 2), w)
        joint = first[:, None] * later
        expected += (joint.T if back else joint) / 2
    assert_close(clean(out), expected)


def test_no_share_is_no_guidance_without_a_prompt():
    plain = token_law(MASKED, C, steps=4)
    assert_close(token_law(MASKED, C, guide="unprompted(3)", steps=4, **NOWHERE), plain)


def spied(remask, prompt):
    """What the null branch is shown of six tokens, of which one is a mask."""
    seen = []
    sure = torch.tensor([0.9, 0.2, 0.6, 0.3, 0.8, 0.5])

    def net(z, t):
        seen.append(z.clone())
        p = torch.stack([sure, 1 - sure], -1).expand(*z.shape, 2)
        return p.log()

    d = TokenDenoiser(net, Masked(2), length=6)
    z = torch.tensor([0, 0, 2, 0, 0, 0])
    fl.discrete.sample(
        d, guide=f"unprompted(2, remask={remask})", steps=1, z=z, batching="sequential",
        masks={"prompt": torch.tensor(prompt)},
    )  # fmt: skip
    return seen[0][0].tolist(), seen[1][0].tolist()


@pytest.mark.parametrize(
    ("remask", "prompt", "hidden"),
    [
        (0.0, [0] * 6, {2}),
        (0.2, [0] * 6, {2, 1}),
        (0.4, [0] * 6, {2, 1, 3}),
        (0.59, [0] * 6, {2, 1, 3}),  # floor(2.95)
        (1.0, [0] * 6, {0, 1, 2, 3, 4, 5}),
        (0.5, [1, 1, 0, 0, 0, 0], {0, 1, 2, 3}),  # of three tokens behind the prompt one
    ],
)
def test_the_least_sure_are_masked_again(remask, prompt, hidden):
    cond, null = spied(remask, prompt)
    assert cond == [0, 0, 2, 0, 0, 0]
    assert {i for i, token in enumerate(null) if token == 2} == hidden


def test_remasking_needs_clean_predictions():
    with pytest.raises(ValueError, match=r"unprompted: remask needs .* not in the space 'post"):
        fl.discrete.sample(
            MASKED, C, guide="unprompted(2, remask=0.5)", space="posterior", steps=2, **NOWHERE
        )
    with pytest.raises(ValueError, match=r"unprompted: remask must be in \[0, 1\], got 1.5"):
        fl.Unprompted(2.0, remask=1.5)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0])
def test_chain_rule_is_the_law_of_that_order(w):
    out = log_likelihood(MASKED, TOY.sequences, C, guide=f"cfg({w})").exp()
    assert_close(out, TOY.ordered(w, 0, (0, 1)))


def test_bound_of_an_exact_model_is_exact():
    out = log_likelihood(MASKED, TOY.sequences, C, method="bound", draws=800)
    # what is left is the variance of which tokens are masked: .02 and less
    assert_close(out, TOY.laws[0].log(), rtol=0, atol=0.08)


def test_guided_bound_is_the_mean_over_orders():
    table = three_tokens()
    w, joint = 2.0, torch.stack([table.joint[0], torch.full((2, 2, 2), 1 / 8).double()])
    two = TokenTable(joint, torch.tensor([0.5, 0.5]))
    d = two.denoiser(Masked(2, eps=0.0))
    z = two.sequences.repeat(500, 1)  # every copy has masks of its own
    out = log_likelihood(d, z, C, guide=f"cfg({w})", method="bound", draws=64)
    mine = out.reshape(500, 8).mean(0)
    orders = [two.ordered(w, 0, o).log() for o in permutations(range(3))]
    assert_close(mine, torch.stack(orders).mean(0), rtol=0, atol=0.05)


def test_prompt_is_given():
    z = torch.tensor([[1, 0], [1, 1]])
    masks = {"masks": {"prompt": [1.0, 0.0]}}
    law = TOY.laws[0].reshape(2, 2)
    expected = law[1] / law[1].sum()
    assert_close(log_likelihood(MASKED, z, C, **masks).exp(), expected)
    guided = log_likelihood(MASKED, z, C, guide="unprompted(2)", **masks).exp()
    assert_close(guided, tempered(expected, law.sum(0), 2.0))
    bound = log_likelihood(MASKED, z, C, method="bound", draws=1, **masks)
    assert_close(bound, expected.log())  # of one token there is one way


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sum"}, "log_likelihood: method must be one of"),
        ({"draws": 0}, "log_likelihood: draws must be at least 1, got 0"),
        ({"z": torch.zeros(2).long()}, r"z must hold tokens \(n, L\), got \(2,\)"),
        ({"denoiser": TOY.denoiser(Uniform(2))}, "needs a process with masks, not uniform"),
    ],
)
def test_errors(options, message):
    given = {"denoiser": MASKED, "z": TOY.sequences, "condition": C, **options}
    with pytest.raises(ValueError, match=message):
        log_likelihood(**given)
