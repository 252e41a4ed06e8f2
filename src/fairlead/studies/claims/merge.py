"""Claim of importance-based token merging."""

import torch
from torch import Tensor

from fairlead.guidance.policies.merge import match, pooled
from fairlead.metrics import mean_interval
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees, below, difference

TOKENS, PLANTED, TRIALS = 64, 12, 4000


def spent(importance: Tensor, generator: torch.Generator) -> Tensor:
    """How many of the first tokens are merged away, `(M,)`."""
    features = torch.randn(TRIALS, TOKENS, 16, generator=generator)
    noise = torch.rand(2, TRIALS, TOKENS, generator=generator)
    count = int(0.7 * TOKENS)
    pool, kept = pooled(importance, noise, int((TOKENS - count) * 1.4), TOKENS // 4)
    merged = match(features, pool, kept, count).merged
    return (merged < PLANTED).sum(1).double()


@claim(
    "merge",
    ids=("S034",),
    claim="Choosing tokens by the response to guidance spares the important ones.",
    setting="64 random tokens, 12 of them important, ratio 0.7, pool 1.4, 4000 draws; a first run "
    "asked for 2.9 merged tokens, which counting excludes",
    expected="fewer important tokens are merged with their importance known than with a random "
    "map; by counting 12 (12/28) (8/12) = 3.43 of the 12, and 12 (44/64) = 8.25",
)
def planted() -> Finding:
    """Both numbers agree, and the first is less; 36 tokens lie outside the pool, 8 inside go."""
    generator = torch.Generator().manual_seed(0)
    known = (torch.arange(TOKENS) < PLANTED).float().expand(TRIALS, -1)
    random = torch.rand(TRIALS, TOKENS, generator=generator)
    a, b = (mean_interval(spent(i, generator)) for i in (known, random))
    return Finding(
        {"merged, importance known": a, "merged, random map": b},
        {
            "importance known": agrees(a, 24 / 7, 0.005),
            "random map": agrees(b, 8.25, 0.005),
            "fewer": below(difference(a, b)),
        },
    )
