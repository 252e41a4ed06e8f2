"""Claim of distances between conditions by the continuations they induce."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fairlead.autoregressive import trajectory_distance, trajectory_scores
from fairlead.guidance.combine import combine
from fairlead.metrics import mean_interval
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import agrees

PUBLISHED = {1.0: 0.36, 1.5: 0.55, 2.0: 0.75, 3.0: 1.17, 5.0: 2.01}
SYMBOLS, LENGTH, REPEATS, COUNT = 6, 4, 400, 20


def rows(seed: int) -> Tensor:
    """Transition probabilities of a chain."""
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(SYMBOLS), SYMBOLS))


@claim(
    "meaning_distance",
    ids=("S153",),
    claim="The distance of two conditions by the likelihood of their continuations tells how far "
    "guidance moves a language model away from its null.",
    setting="two Markov chains on 6 symbols (rows numpy default_rng(1) and (2), dirichlet), null "
    "their mean, the condition the first; the guided chain against null, 20 texts of 4 symbols of "
    "each, start symbol 0, 400 repeats",
    expected="mean distance about .36, .55, .75, 1.17, 2.01 at w = 1, 1.5, 2, 3, 5 (to the second "
    "digit and the interval); it rises with w; the same chain is at 0",
)
def chains() -> Finding:
    """Each mean with its interval."""
    cond = rows(1)
    null = (cond + rows(2)) / 2
    generator = torch.Generator().manual_seed(0)

    def law(p: Tensor):  # type: ignore[no-untyped-def]
        def draw(n: int) -> Tensor:
            texts = torch.zeros(n, LENGTH + 1, dtype=torch.long)
            for i in range(LENGTH):
                texts[:, i + 1] = torch.multinomial(
                    p[texts[:, i]], 1, replacement=True, generator=generator
                )[:, 0]
            return texts

        return draw, lambda texts: p.log()[texts[:, :-1], texts[:, 1:]].mean(1)

    found = {}
    for w in PUBLISHED:
        given = {"cond": cond.log(), "null": null.log()}
        guided = combine(f"cfg({w})", given, domain="logprob").exp()
        scores = [trajectory_scores(law(guided), law(null), COUNT) for _ in range(REPEATS)]
        found[w] = mean_interval(torch.tensor([trajectory_distance(s) for s in scores]))
    same = trajectory_distance(trajectory_scores(law(null), law(null), COUNT))
    checks = {f"w = {w:g}: {p:g}": agrees(found[w], p, 0.005) for w, p in PUBLISHED.items()}
    checks["rises"] = all(a.value < b.value for a, b in pairwise(found.values()))
    checks["the same chain"] = same == 0
    return Finding({f"w = {w:g}": v for w, v in found.items()} | {"same": same}, checks, nfe=None)
