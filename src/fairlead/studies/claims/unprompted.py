"""Claims of unsupervised guidance of masked language models."""

import numpy as np
import torch

from fairlead.guidance.combine import combine
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import equals

# greedy hit rate of a model that sees 0.3 of the prompt, by scale
PUBLISHED = {1.0: 0.68, 1.5: 0.82, 2.0: 0.92, 3.0: 0.91, 5.0: 0.76, 10.0: 0.64}
EXACT = {1.0: 1.00, 2.0: 0.81}
SEEDS = 200


@claim(
    "unprompted",
    ids=("S089",),
    claim="Masking the prompt gives a null that needs no training, and extrapolating from it "
    "improves the answers of a model that makes too little of its prompt.",
    setting="8 prompts, 8 answers of one token, p(a|q) in proportion to a^-1.5 exp(1.5 n); the "
    "model is 0.3 p(a|q) + 0.7 p(a) or exact; greedy hit rate of the likeliest answer, 200 seeds",
    expected="hit rate .68, .82, .92, .91, .76, .64 at w = 1, 1.5, 2, 3, 5, 10; the exact model "
    "1.00 at w = 1 and .81 at w = 2",
)
def answers() -> Finding:
    """Each rate, and that the best scale lies above 1 for the model and at 1 for the truth."""
    hits = {("model", w): 0.0 for w in PUBLISHED} | {("exact", w): 0.0 for w in EXACT}
    mask = {"prompt": torch.ones(8)}
    for seed in range(SEEDS):
        noise = np.random.default_rng(seed).standard_normal((8, 8))
        p = np.arange(1, 9.0)[None] ** -1.5 * np.exp(1.5 * noise)
        true = torch.from_numpy(p / p.sum(1, keepdims=True))
        marginal = true.mean(0, keepdim=True).expand(8, 8)
        for kind, w in hits:
            cond = true if kind == "exact" else 0.3 * true + 0.7 * marginal
            given = {"cond": cond.log(), "unprompted": marginal.log()}
            out = combine(f"unprompted({w})", given, domain="logprob", masks=mask)
            right = out.argmax(1) == true.argmax(1)
            hits[kind, w] += right.double().mean().item() / SEEDS
    measured = {f"{kind}, w = {w:g}": v for (kind, w), v in hits.items()}
    checks = {
        f"{kind}, w = {w:g}: {number}": equals(hits[kind, w], number, 0.0051)
        for kind, numbers in (("model", PUBLISHED), ("exact", EXACT))
        for w, number in numbers.items()
    }
    return Finding(measured, checks, nfe=2)
