"""Acceptance: the guarantees by exact enumeration, and samples that are given up on the way."""

import math

import pytest
import torch
from scipy.stats import beta, binom
from torch.testing import assert_close

import fairlead as fl
from fairlead.selection import Drawn, certify, draw, floors, quantiles, select

MIX = fl.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.2]], 0.3, labels=[0, 1, 2])
D = MIX.denoiser(fl.schedules.VP())


def first(x):
    return x[:, 0]


def compositions(n, cells):
    if cells == 1:
        yield (n,)
        return
    for k in range(n + 1):
        for rest in compositions(n - k, cells - 1):
            yield (k, *rest)


def wrong(share, confidence, n, masses, goods, accept):
    """Exact probability that a threshold is accepted below which too few are good.

    Scores are 2, 1 and 0 with probabilities `masses`; each sample is good with that of its score.
    All outcomes are counted, with their multinomial weights.
    """
    cells = [m * q for m, g in zip(masses, goods, strict=True) for q in (g, 1 - g)]
    total = 0.0
    for counts in compositions(n, 6):
        weight = math.factorial(n)
        for count, p in zip(counts, cells, strict=True):
            weight *= p**count / math.factorial(count)
        if weight == 0:
            continue
        score = torch.tensor([2.0, 2.0, 1.0, 1.0, 0.0, 0.0]).repeat_interleave(torch.tensor(counts))
        good = torch.tensor([True, False] * 3).repeat_interleave(torch.tensor(counts))
        level = accept(score, good, share, confidence)
        kept = [(m, g) for s, m, g in zip((2, 1, 0), masses, goods, strict=True) if s >= level]
        mass = sum(m for m, _ in kept)
        if kept and sum(m * g for m, g in kept) / mass < share - 1e-12:
            total += weight
    return total


def proven(score, good, share, confidence):
    return certify(score, good, [2.0, 1.0, 0.0], share=share, confidence=confidence).threshold


def naive(score, good, share, confidence):
    """The most lenient threshold whose observed share is high enough."""
    fit = [t for t in (2.0, 1.0, 0.0) if good[score >= t].double().mean() >= share]
    return min(fit, default=math.inf)


LAWS = [
    ((0.4, 0.3, 0.3), (0.69, 0.69, 0.69)),  # all just below 0.7: no threshold is right
    ((0.5, 0.2, 0.3), (0.95, 0.3, 0.2)),  # the strictest alone is
    ((0.2, 0.5, 0.3), (0.5, 0.75, 0.9)),  # a score that misleads
]


@pytest.mark.parametrize(("masses", "goods"), LAWS)
def test_a_wrong_threshold_is_proven_as_rarely_as_promised(masses, goods):
    error = wrong(0.7, 0.8, 7, masses, goods, proven)
    assert error <= 0.2 + 1e-12


def test_the_observed_share_alone_is_wrong_more_often():
    assert wrong(0.7, 0.8, 7, *LAWS[0], naive) > 0.35


def test_the_bound_is_exact_at_every_number_of_good_ones():
    """At the share that it gives, as many good ones or more have probability 0.1."""
    for kept in (1, 7, 45):
        for hits in range(1, kept + 1):
            score, good = torch.zeros(kept), torch.arange(kept) < hits
            low = certify(score, good, [0.0]).tested[0].low
            assert binom.sf(hits - 1, kept, low) == pytest.approx(0.1, rel=1e-9)


def test_how_many_perfect_ones_prove_a_share():
    for n, enough in ((44, False), (45, True)):  # 0.95^45 < 0.1 < 0.95^44
        assert bool(certify(torch.zeros(n), torch.ones(n), [0.0])) is enough


def test_worked_by_hand():
    score = torch.tensor([3.0] * 50 + [2.0] * 50 + [1.0] * 50 + [-math.inf] * 5)
    good = torch.tensor([True] * 99 + [False] + [True] * 25 + [False] * 25 + [True] * 5)
    found = certify(score, good, [1.0, 3.0, 2.0, 2.0], share=0.95)
    assert found.threshold == 2.0
    assert [(t.threshold, t.kept, t.good) for t in found.tested] == [
        (3.0, 50, 50),
        (2.0, 100, 99),
        (1.0, 150, 124),
    ]
    assert found.tested[1].low == pytest.approx(beta.ppf(0.1, 99, 2))
    assert found.tested[1].recall == pytest.approx(99 / 129)  # those given up count as lost
    assert "score >= 2" in str(found)
    assert "99/100 good, at least 0.962; recall 0.767" in str(found)


def test_the_first_failure_ends_the_test():
    """A lenient threshold that would pass alone stays unproven behind a strict one that fails."""
    score = torch.tensor([2.0] * 5 + [1.0] * 200)
    good = torch.tensor([False] * 5 + [True] * 200)
    assert certify(score, good, [1.0], share=0.9).threshold == 1.0
    found = certify(score, good, [2.0, 1.0], share=0.9)
    assert not found
    assert found.threshold == math.inf
    assert str(found).startswith("not proven: at least 90.0%")


def test_quantiles_keep_their_share():
    score = torch.randperm(200, generator=torch.Generator().manual_seed(0)).double()
    for share, level in zip((0.1, 0.55, 1.0), quantiles(score, (0.1, 0.55, 1.0)), strict=True):
        assert (score >= level).double().mean().item() == pytest.approx(share)


@pytest.mark.parametrize(("m", "loss"), [(19, 0.05), (39, 0.1), (30, 0.1), (12, 0.05)])
def test_floor_loses_a_new_sample_with_the_probability_of_its_rank(m, loss):
    """Each of `m + 1` exchangeable samples in turn is the new one: exactly `k` fall below."""
    early = torch.randperm(m + 1, generator=torch.Generator().manual_seed(1)).double()
    lost = 0
    for new in range(m + 1):
        rest = torch.cat([early[:new], early[new + 1 :]])
        # samples that end below the threshold set no floor, however low they were
        rest = torch.cat([rest, -100 * torch.ones(7)])
        end = torch.cat([torch.ones(m), torch.zeros(7)])
        given = Drawn(torch.zeros(m + 7, 1), end, {3: rest}, torch.zeros(m + 7))
        lost += early[new].item() < floors(given, 1.0, loss=loss)[3]
    assert lost == math.floor(loss * (m + 1))
    assert lost / (m + 1) <= loss


def test_loss_is_shared_by_the_steps():
    end, early = torch.ones(99), torch.arange(99.0)
    given = Drawn(torch.zeros(99, 1), end, {1: early, 2: early.flip(0)}, torch.zeros(99))
    assert floors(given, 1.0, loss=0.06) == {1: 2.0, 2: 2.0}  # 3 of 100 at each
    assert floors(given, 1.0, loss=0.01) == {1: -math.inf, 2: -math.inf}


@pytest.mark.parametrize("sampler", ["heun", "ddpm", "dpmpp_2m", "unipc", "ddim(eta=1.0)"])
@pytest.mark.parametrize(
    "guide", ["cfg(2)", "cfg(3) | apg(eta=0, beta=-0.5)", "cfg(2) | cache(low=1, high=1)"]
)
def test_what_is_not_given_up_comes_out_as_without(sampler, guide):
    options = {"guide": guide, "sampler": sampler, "steps": 9, "seed": 3, "dtype": torch.float64}
    n, label = 12, {"label": torch.full((12,), 1)}
    whole = fl.sample(D, label, **options)
    seen = draw(D, label, n=n, score=first, checks=[2, 6], **options).early
    # between two scores, which depend on the batch in their last digits
    low = {step: seen[step].sort().values[k : k + 2].mean().item() for step, k in ((2, 2), (6, 6))}
    found = draw(D, label, n=n, score=first, floors=low, **options)
    stays = (seen[2] >= low[2]) & (seen[6] >= low[6])
    assert torch.equal(found.finished, stays)
    assert 0 < stays.sum() < 7
    assert_close(found.x[stays], whole.x[stays], rtol=1e-12, atol=1e-12)
    assert_close(found.score[stays], first(whole.x[stays]), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.nfe[stays], whole.nfe[stays].long())
    assert (found.nfe[~stays] < whole.nfe[~stays]).all()
    assert torch.equal(found.early[6] == -math.inf, seen[2] < low[2])


def test_given_up_samples_cost_what_they_ran():
    found = draw(D, n=40, score=first, floors={2: 0.0, 5: 0.1}, sampler="ddim", steps=8)
    second = (found.early[2] >= 0) & (found.early[5] < 0.1)
    assert second.any()
    assert torch.equal(found.nfe[found.early[2] < 0], torch.full(((found.early[2] < 0).sum(),), 2))
    assert (found.nfe[second] == 5).all()
    assert (found.nfe[found.finished] == 8).all()
    assert_close(first(found.x[second]).double(), found.early[5][second])  # its clean estimate


def test_selection_does_not_depend_on_the_batch():
    options = {"n": 10, "score": first, "threshold": 0.5, "steps": 6, "dtype": torch.float64}
    one = select(D, {"label": 3}, batch=64, guide="none", **options)
    two = select(D, {"label": 3}, batch=7, guide="none", **options)
    assert_close(one.x, two.x, rtol=1e-12, atol=1e-12)
    assert (first(one.x) >= 0.5).all()
    assert one.drawn == 64
    assert two.drawn % 7 == 0
    assert two.cost == two.nfe / 10
    assert f"kept 10 of {two.drawn}, 0 given up early" in str(two)
    few = select(D, {"label": 3}, batch=5, most=12, **{**options, "threshold": 9.0})
    assert (len(few.x), few.drawn) == (0, 12)


def test_all_given_up_ends_the_draw():
    found = draw(D, n=4, score=first, floors={2: 99.0}, sampler="ddim", steps=8)
    assert (found.nfe == 2).all()
    assert not found.finished.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certify(torch.zeros(3), torch.zeros(2), [0.0]), "one a sample"),
        (lambda: certify(torch.tensor([math.nan]), torch.ones(1), [0.0]), "must not be nan"),
        (lambda: certify(torch.zeros(3), torch.zeros(3), []), "at least one"),
        (lambda: certify(torch.zeros(3), torch.zeros(3), [-math.inf]), "finite"),
        (lambda: certify(torch.zeros(3), torch.zeros(3), [0.0], share=1.0), r"share must be in"),
        (lambda: certify(torch.zeros(3), torch.zeros(3), [0.0], confidence=0.0), "confidence"),
        (lambda: quantiles(torch.zeros(0)), r"must be \(n,\)"),
        (lambda: quantiles(torch.zeros(2), [0.0]), r"shares must be in \(0, 1\]"),
        (lambda: draw(D, n=2, score=first, checks=[8], steps=8), r"in \[1, 7\], got \[8\]"),
        (lambda: draw(D, n=2, score=lambda x: x, steps=2), r"\(2,\), got \(2, 2\)"),
        (lambda: select(D, n=0, score=first, threshold=0.0), "n must be at least 1"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_floors_need_finished_samples_and_steps():
    end, early = torch.tensor([1.0, -math.inf]), {1: torch.zeros(2)}
    with pytest.raises(ValueError, match="given up early"):
        floors(Drawn(torch.zeros(2, 1), end, early, torch.zeros(2)), 0.0)
    with pytest.raises(ValueError, match="at no step"):
        floors(Drawn(torch.zeros(2, 1), end, {}, torch.zeros(2)), 0.0)
    with pytest.raises(ValueError, match=r"loss must be in \(0, 1\)"):
        floors(Drawn(torch.zeros(2, 1), end, early, torch.zeros(2)), 0.0, loss=1.0)
