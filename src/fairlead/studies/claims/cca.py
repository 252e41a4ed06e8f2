"""Claim of condition contrastive alignment."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import equals
from fairlead.training import cca_loss

TOKENS, CLASSES = 16, 4
GUIDED = {1.0: (0.411, 2.37), 2.0: (0.515, 1.92), 3.0: (0.587, 1.51), 5.0: (0.668, 0.89)}
TRAINED = {
    (1.0, 1.0): (0.477, 2.09),
    (0.5, 1.0): (0.504, 1.94),
    (0.25, 1.0): (0.525, 1.80),
    (0.1, 1.0): (0.541, 1.69),
    (1.0, 3.0): (0.593, 1.48),
    (0.5, 3.0): (0.667, 0.84),
}
"""Mean `p(c|x)` and mean entropy by scale, and by `beta` and `lambda`."""


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Logits at the minimum."""
    logits = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=2000,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(logits)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return logits.detach()


@claim(
    "cca",
    ids=("S012",),
    claim="Fine-tuning that contrasts right with wrong conditions makes the conditional model act "
    "like a guided one, at one evaluation.",
    setting="a table of 16 tokens in 4 classes, numpy default_rng(0).dirichlet, the conditional "
    "law as reference; the exact expected loss, without null conditions, by LBFGS; mean p(c | x) "
    "and entropy",
    expected="CFG at w = 1, 2, 3, 5: (.411, 2.37), (.515, 1.92), (.587, 1.51), (.668, .89); CCA at "
    "lam = 1, beta = 1, .5, .25, .1: (.477, 2.09), (.504, 1.94), (.525, 1.80), (.541, 1.69); lam = "
    "3, beta = 1, .5: (.593, 1.48), (.667, .84)",
)
def tabular() -> Finding:
    """Each pair of numbers, and that all of the trained ones beat the reference."""
    law = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(TOKENS), CLASSES))
    marginal = law.mean(0)
    posterior = law / law.sum(0)

    def measure(p: Tensor) -> tuple[float, float]:
        success = (p * posterior).sum(1).mean().item()
        return success, -(p * p.clamp(min=1e-300).log()).sum(1).mean().item()

    found, numbers = {}, {}
    for w, published in GUIDED.items():
        tilted = law**w * marginal ** (1 - w)
        name = f"cfg, w = {w:g}"
        found[name], numbers[name] = measure(tilted / tilted.sum(1, keepdim=True)), published
    for (beta, lam), published in TRAINED.items():

        def loss(logits: Tensor, beta: float = beta, lam: float = lam) -> Tensor:
            delta = logits.log_softmax(1) - law.log()
            total = torch.zeros((), dtype=torch.float64)
            for shift in range(CLASSES):  # every other condition as often as the own one
                each = cca_loss(delta.flatten(), delta.roll(shift, 0).flatten(), beta=beta, lam=lam)
                total = total + (law.flatten() * each).sum() / CLASSES**2
            return total

        p = minimise(loss, law.log()).softmax(1)
        name = f"cca, beta = {beta:g}, lam = {lam:g}"
        found[name], numbers[name] = measure(p), published
    checks = {
        f"{name}: {success:g}, {entropy:g}": equals(found[name][0], success, 5.1e-4)
        and equals(found[name][1], entropy, 5.1e-3)
        for name, (success, entropy) in numbers.items()
    }
    plain = found["cfg, w = 1"][0]
    checks["above the reference"] = all(v[0] > plain for k, v in found.items() if k[:3] == "cca")
    return Finding({k: list(v) for k, v in found.items()}, checks, nfe=1)
