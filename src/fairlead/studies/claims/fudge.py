"""Claim of reweighting next tokens by a classifier of prefixes."""

from itertools import pairwise

import torch
from torch import Tensor

import fairlead as fl
from fairlead.studies.claims._harness import Finding, claim

SYMBOLS, LENGTH = 4, 4


def law(p: Tensor, posterior: list[Tensor], gamma: float) -> Tensor:
    """Probability of every string, `(4, 4, 4, 4)`, generated token by token."""
    total = torch.ones((), dtype=torch.float64)
    guide = fl.CFG(1.0) | fl.Fudge(gamma, top_k=0)
    for i in range(LENGTH):
        marginal = p.sum(tuple(range(i + 1, LENGTH))) if i + 1 < LENGTH else p
        rows = marginal.reshape(-1, SYMBOLS)
        before = torch.ones([SYMBOLS] * i).nonzero().reshape(len(rows), i)
        of_prefix = posterior[i]

        def classifier(tokens: Tensor, of_prefix: Tensor = of_prefix) -> Tensor:
            return of_prefix[tuple(tokens.T)].log()

        out = fl.combine(
            guide,
            {"cond": (rows / rows.sum(1, keepdim=True)).log()},
            domain="logprob",
            tokens=before,
            rewards={"classifier": classifier},
        )
        total = total[..., None] * out.exp().reshape(marginal.shape)
    return total


@claim(
    "fudge",
    ids=("XD5", "S138"),
    claim="Reweighting next tokens by the exact posterior of the prefix samples the conditional "
    "law of whole strings; stronger weights sharpen it, and a classifier of complete strings is "
    "biased on prefixes.",
    setting="a random law and random soft labels on strings of 4 tokens over 4 symbols; gamma = 0, "
    "1, 2, 5; the classifier of complete strings sees prefixes padded with symbol 0",
    expected="total variation to the conditional at gamma = 1 below 1e-9, with padded prefixes "
    "above 0.1; mean p(y | x) rises with gamma",
)
def exact() -> Finding:
    """Enumeration of all strings."""
    generator = torch.Generator().manual_seed(0)
    shape = [SYMBOLS] * LENGTH
    p = torch.rand(shape, dtype=torch.float64, generator=generator).log().neg()
    p = p / p.sum()
    label = torch.rand(shape, dtype=torch.float64, generator=generator)
    conditional = p * label / (p * label).sum()
    last = [tuple(range(i + 1, LENGTH)) for i in range(LENGTH)]
    posterior = [((p * label).sum(dims) / p.sum(dims)) if dims else label for dims in last]
    padded = [label.reshape(*[SYMBOLS] * (LENGTH - len(dims)), -1)[..., 0] for dims in last]
    distance = (law(p, posterior, 1.0) - conditional).abs().sum().item() / 2
    biased = (law(p, padded, 1.0) - conditional).abs().sum().item() / 2
    means = [(law(p, posterior, g) * label).sum().item() for g in (0.0, 1.0, 2.0, 5.0)]
    checks = {
        "exact at gamma = 1": distance < 1e-9,
        "padded prefixes are biased": biased > 0.1,
        "rises": all(a < b for a, b in pairwise(means)),
    }
    measured = {"distance": distance, "padded": biased, "mean p(y | x)": means}
    return Finding(measured, checks, nfe=1)
