"""Claim of normalised attention guidance."""

from typing import Any

import torch
from torch import Tensor, nn

import fairlead as fl
from fairlead.condition import Condition
from fairlead.metrics import mean_interval
from fairlead.models.layers import Attention
from fairlead.schedules import EDM, Level
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, below, difference

PROMPT, NEGATIVE = [3.0, 1.0], [0.0, 3.0]
"""Log-odds of two attributes that a text says."""


class Saying(nn.Module):
    """One cross-attention over a text of two tokens, whose values are log-odds of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Attention("cross")
        self.attention_layers = {"text": self.core}

    def forward(self, text: Tensor) -> Tensor:
        """What the text says, `(B, 2)`; every token says the same."""
        v = text[:, None].float()
        said: Tensor = self.core(torch.zeros(len(v), 1, 1, 2), torch.zeros_like(v), v)
        return said[:, 0, 0].double()


class TwoAttributes(fl.Denoiser):
    """Exact denoiser of two attributes, each normal with deviation 0.3 around 2 (there) or -2."""

    def __init__(self) -> None:
        super().__init__(Saying(), EDM(), "sample", shape=(2,))

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        odds = self.network(condition["text"])
        v = 0.09 + level.sigma**2
        there = torch.sigmoid(odds + 4 * x / v)
        return x + level.sigma**2 / v * ((2 * there - 1) * 2 - x)


def draw(guide: str, steps: int) -> Tensor:
    """Samples."""
    texts = {n: torch.tensor([[w, w]]) for n, w in (("cond", PROMPT), ("negative", NEGATIVE))}
    out = fl.sample(
        TwoAttributes(),
        {"text": texts["cond"]},
        guide=guide,
        negative={"text": texts["negative"]},
        sampler="ddim",
        steps=steps,
        n=2000,
        dtype=torch.float64,
        record=False,
    )
    return out.x


@claim(
    "nag",
    ids=("XP3",),
    claim="Guiding inside attention removes what the negative text names, also in a few steps, "
    "where guiding predictions leaves the range of the data.",
    setting="two attributes whose log-odds are the output of a cross-attention, exact denoiser; "
    "the text says 3 and 1, the negative 0 and 3; 2 and 4 DDIM steps, 2000 samples; phi = 0, 2, 4, "
    "8 against CFG with the negative at w = 5",
    expected="share of the second attribute falls from each phi to the next while that of the "
    "first stays above 0.9; share of samples beyond 3.2 (4 deviations) of CFG above 0.5, of NAG "
    "at phi = 4 no more than at phi = 0, 95 % intervals",
)
def attributes() -> Finding:
    """Every statement holds at 2 and at 4 steps."""
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for steps in (2, 4):
        shares = []
        outside = {}
        for phi in (0.0, 2.0, 4.0, 8.0):
            x = draw(f"none | nag({phi})", steps)
            shares.append(mean_interval((x[:, 1] > 0).double()))
            outside[phi] = mean_interval((x.abs() > 3.2).any(1).double())
            first = mean_interval((x[:, 0] > 0).double())
            checks[f"first attribute, phi = {phi:g}, {steps} steps"] = above(first, 0.9)
        for i in range(3):
            name = f"second attribute falls to phi = {(2, 4, 8)[i]}, {steps} steps"
            checks[name] = below(difference(shares[i + 1], shares[i]))
        cfg = mean_interval((draw("cfg(5, against='negative')", steps).abs() > 3.2).any(1).double())
        checks[f"CFG leaves the range, {steps} steps"] = above(cfg, 0.5)
        checks[f"NAG stays in it, {steps} steps"] = outside[4.0].value <= outside[0.0].high
        measured[f"{steps} steps"] = {
            "second attribute": shares,
            "beyond 3.2, CFG": cfg,
            "beyond 3.2, NAG": outside[4.0],
        }
    return Finding(measured, checks, nfe=2)
