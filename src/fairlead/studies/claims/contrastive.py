"""Claims of contrastive decoding, of DExperts, and of the filters that go with them."""

from itertools import pairwise

import torch
from torch import Tensor

import fairlead as fl
from fairlead.studies.claims._harness import Finding, claim

SYMBOLS, CHAINS = 8, 20


def chains(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Next-symbol tables `(8, 8)` of the true chain, of the expert and of the amateur."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(SYMBOLS, SYMBOLS, dtype=torch.float64, generator=generator).log().neg()
    stay = torch.eye(SYMBOLS, dtype=torch.float64)
    moves = rows * (1 - stay)
    true = 0.97 * moves / moves.sum(1, keepdim=True) + 0.03 / SYMBOLS
    unigram = stationary(true)[None].expand(SYMBOLS, -1)
    even = torch.full_like(true, 1 / SYMBOLS)
    expert = 0.99 * (0.7 * true + 0.3 * stay) + 0.01 * even
    amateur = 0.99 * (0.5 * unigram + 0.5 * stay) + 0.01 * even
    return true, expert, amateur


def stationary(table: Tensor) -> Tensor:
    """The share of each symbol in the long run."""
    power: Tensor = torch.linalg.matrix_power(table, 4096)
    return power[0]


def measure(guide: str) -> list[float]:
    """Rate of repeated symbols, and log-likelihood a symbol under the true chain; exact means."""
    found = []
    for seed in range(CHAINS):
        true, expert, amateur = chains(seed)
        values = {"cond": expert.log(), "amateur": amateur.log()}
        table = fl.combine(guide, values, domain="logprob").exp()
        pairs = stationary(table)[:, None] * table
        found.append([pairs.diagonal().sum().item(), (pairs * true.log()).sum().item()])
    return torch.tensor(found).mean(0).tolist()


@claim(
    "contrastive",
    ids=("XD3",),
    claim="Subtracting a weaker model that repeats more removes repetition, and what remains is "
    "likelier under the true model.",
    setting="20 random chains over 8 symbols without self-transitions but for 3 % smoothing; the "
    "expert repeats the last symbol in 30 % of cases, the amateur (unigram) in 50 %; stationary "
    "values, alpha = 0.1",
    expected="repetition falls and log-likelihood rises from the expert over lam = 0.5 to 1; at "
    "lam = 1 a rate below 0.1 (the entry's chains: 0.301, 0.139, 0.052 and -2.66, -1.90, -1.59)",
)
def repetition() -> Finding:
    """Both move the right way."""
    guides = {
        "expert": "none",
        "lam = 0.5": "contrastive(0.5) | plausible(0.1)",
        "lam = 1": "contrastive(1.0) | plausible(0.1)",
    }
    measured = {name: measure(guide) for name, guide in guides.items()}
    rates, likelihoods = zip(*measured.values(), strict=True)
    checks = {
        "repetition falls": all(a > b for a, b in pairwise(rates)),
        "likelihood rises": all(a < b for a, b in pairwise(likelihoods)),
        "below 0.1 at lam = 1": rates[-1] < 0.1,
    }
    return Finding(measured, checks, nfe=2)


@claim(
    "plausible",
    ids=("XD3",),
    claim="Restricting contrastive decoding to what the expert finds plausible keeps unlikely "
    "tokens from winning.",
    setting="the chains of the contrastive claim, lam = 1, alpha = 0.1 and no restriction",
    expected="log-likelihood under the true chain is higher with the restriction (the entry's "
    "chains: -1.59 against -1.80)",
)
def restricted() -> Finding:
    """The restriction raises the likelihood."""
    inside, free = measure("contrastive(1.0) | plausible(0.1)"), measure("contrastive(1.0)")
    measured = {"restricted": inside, "free": free}
    return Finding(measured, {"likelier": inside[1] > free[1]}, nfe=2)


def experts(a: float, guide: str = "dexperts({a})") -> tuple[float, float]:
    """Mean log-ratio of expert and anti-expert, and mass outside the base's nucleus of 0.9."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 50, 20, dtype=torch.float64, generator=generator).mul(2).log_softmax(-1)
    values = dict(zip(("cond", "expert", "anti"), rows, strict=True))
    p = fl.combine(guide.format(a=a), values, domain="logprob").exp()
    kept = fl.combine("dexperts(1e-9) | nucleus(0.9)", values, domain="logprob").exp() > 1e-12
    ratio = (p * (values["expert"] - values["anti"])).sum(-1).mean().item()
    return ratio, (p * ~kept).sum(-1).mean().item()


@claim(
    "dexperts",
    ids=("XD4",),
    claim="Adding the difference of an expert and an anti-expert steers the base towards what "
    "tells them apart, the more the stronger.",
    setting="50 random triples of models over 20 tokens, a = 0, 0.5, 1, 2, 4",
    expected="the mean log-ratio of expert and anti-expert never falls with a",
)
def steered() -> Finding:
    """It rises at every step."""
    ratios = [experts(a)[0] for a in (0.0, 0.5, 1.0, 2.0, 4.0)]
    measured = {"log-ratio by a": ratios}
    return Finding(measured, {"rises": all(x < y for x, y in pairwise(ratios))}, nfe=3)


@claim(
    "nucleus",
    ids=("XD4",),
    claim="A filter before the combine keeps tokens excluded that the base model excludes.",
    setting="50 random triples of models over 20 tokens, a = 2, nucleus of 0.9",
    expected="the mass outside the base's nucleus is 0 with the filter and above 0.05 without it",
)
def excluded() -> Finding:
    """The filter leaves nothing outside."""
    free = experts(2.0)[1]
    filtered = experts(2.0, "dexperts({a}) | nucleus(0.9)")[1]
    checks = {"free": free > 0.05, "filtered": filtered < 1e-9}
    return Finding({"mass outside, free": free, "filtered": filtered}, checks, nfe=3)
