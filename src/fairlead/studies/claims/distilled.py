"""The claim of one-step students of flows on the simplex."""

from typing import Any

import torch
from torch import Tensor, nn

from fairlead.discrete import (
    Dirichlet,
    TokenDenoiser,
    distillation_loss,
    pairs,
    sample,
)
from fairlead.exact import TokenTable, golden_tokens
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check

TRAIN, HELD, STEPS, UPDATES, WIDTH = 4000, 2000, 100, 3000, 64


class Perceptron(nn.Module):
    """Logits of all tokens from all positions and the time."""

    def __init__(self, length: int, tokens: int) -> None:
        super().__init__()
        size = length * tokens
        self.layers = nn.Sequential(
            nn.Linear(size + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(),
            nn.Linear(WIDTH, size),
        )  # fmt: skip

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """Logits `(B, L, K)` of points `(B, L, K)`."""
        logits: Tensor = self.layers(torch.cat([z.flatten(1), t[:, None]], 1))
        return logits.reshape(z.shape)


def _answers(table: TokenTable, guide: str) -> dict[str, Tensor]:
    """The answers of a guided teacher and of its student to the same held-out starts."""
    process = Dirichlet(table.tokens)
    teacher = table.denoiser(process)
    told: dict[str, Any] = {"guide": guide, "steps": STEPS}
    seen = pairs(teacher, {"label": 0}, n=TRAIN, **told)
    held = pairs(teacher, {"label": 0}, n=HELD, first=TRAIN, **told)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Perceptron(table.length, table.tokens)
    student = TokenDenoiser(network, process, length=table.length)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, UPDATES)
    g = torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        some = seen.rows(torch.randint(TRAIN, (256,), generator=g))
        optimiser.zero_grad()
        distillation_loss(student, some).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        falling.step()
    network.requires_grad_(False)
    mine = sample(
        student, sampler="distilled", steps=1, n=HELD, first=TRAIN, z=held.start, record=False
    ).x
    return {"teacher": held.answer, "student": mine}


@claim(
    "distilled",
    ids=("S068",),
    claim="A student trained on the answers of a guided flow gives them in one evaluation.",
    setting="exact teachers, 100 Euler steps, 4,000 pairs, a perceptron of two layers of 64, 2,000 "
    "held-out starts: one token of four values, p_c = (.7, .1, .1, .1), p_u = (.4, .3, .2, .1), "
    "w = 2; two binary tokens in two classes, w = 3",
    expected="one token: the teacher's answer on at least .985 of the starts (.99 in the "
    "catalogue); two tokens: on at least .95, mean p(c|x) within .02 of the guided teacher's and "
    "above that of the unguided law by .05",
)
def distilled() -> Finding:
    """Agreement on held-out starts, and the class."""
    c, u = torch.tensor([0.7, 0.1, 0.1, 0.1]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    four = TokenTable(torch.stack([c, 2 * u - c]).double(), torch.tensor([0.5, 0.5]))
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    answers = _answers(four, "cfg(2)")
    agreed = (answers["teacher"] == answers["student"]).all(1).double().mean().item()
    measured["agreement, one token"] = agreed
    checks["one token: .985"] = agreed >= 0.985
    for kind, x in answers.items():
        measured[f"shares, one token, {kind}"] = torch.bincount(x[:, 0], minlength=4) / HELD
    two = golden_tokens()
    answers = _answers(two, "cfg(3)")
    agreed = (answers["teacher"] == answers["student"]).all(1).double().mean().item()
    measured["agreement, two tokens"] = agreed
    checks["two tokens: .95"] = agreed >= 0.95
    posterior = two.laws[0] * two.prior[0] / two.laws[2]
    mean = {k: posterior[x[:, 0] * 2 + x[:, 1]].mean().item() for k, x in answers.items()}
    mean["unguided law"] = float(two.laws[0] @ posterior)
    measured["p(c|x), two tokens"] = mean
    checks["two tokens: p(c|x) as the teacher's"] = abs(mean["teacher"] - mean["student"]) < 0.02
    checks["two tokens: p(c|x) is guided"] = mean["student"] > mean["unguided law"] + 0.05
    return Finding(measured, checks, nfe=1)
