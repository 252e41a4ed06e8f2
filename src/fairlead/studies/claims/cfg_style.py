"""Claim of CFG against a negative style."""

from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.condition import Condition
from fairlead.metrics import mean_interval
from fairlead.schedules import DiscreteVP, Level
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, above, agrees

SHARES = torch.tensor([[1.0, 1.0, 0.7], [0.5, 0.5, 0.97], [0.5, 0.5, 0.5]]).double()
"""Of the content asked for and of two style elements: positive, negative, zero image."""

KNOWN = {1.0: (0.70, 0.70), 2.0: (0.45, 0.84), 5.0: (0.11, 0.99)}
"""Rate of the second element by scale: against the negative style, against the zero image."""


class Styles(fl.Denoiser):
    """Three independent attributes, each normal with deviation 0.5 around 2 (there) or -2."""

    def __init__(self) -> None:
        super().__init__(
            lambda x, t: x, DiscreteVP.linear(), "sample", null={"style": 2}, shape=(3,)
        )

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        a, s = level.alpha, level.sigma
        v = 0.25 * a**2 + s**2
        odds = torch.logit(SHARES[condition["style"]])
        centre = 2 * torch.tanh((odds + 4 * a * x / v) / 2)
        return centre + 0.25 * a / v * (x - a * centre)


@claim(
    "cfg-style",
    ids=("S065",),
    claim="A negative style, which shares everything with the wanted one but the element to be "
    "rid of, suppresses that element and nothing else; the empty style strengthens it.",
    setting="content and two style elements at +-2, deviation 0.5, exact denoiser, linear betas, "
    "200 DDIM steps, 4000 samples; positive: content, first element, second with probability 0.7; "
    "negative: 0.5, 0.5, 0.97; empty: 0.5 each",
    expected="rate of the second element 0.70, 0.45, 0.11 at w = 1, 2, 5 against the negative "
    "style and 0.70, 0.84, 0.99 against the empty one; content and first element stay at 1.00",
    seed=1,
)
def styles() -> Finding:
    """Every rate agrees."""
    measured: dict[str, Any] = {}
    checks: dict[str, Check] = {}
    for w, published in KNOWN.items():
        for against, number in zip(("negative", "null"), published, strict=True):
            x = fl.sample(
                Styles(),
                {"style": 0},
                guide=fl.CFG(w, against=against),
                negative={"style": 1},
                sampler="ddim",
                steps=200,
                n=4000,
                seed=1,
                dtype=torch.float64,
                record=False,
            ).x
            content, first, second = (mean_interval(r) for r in (x > 0).double().unbind(1))
            name = f"{against}, w = {w:g}"
            measured[name] = {"content": content, "first": first, "second": second}
            checks[name] = agrees(second, number, 0.005)
            checks[f"content and first, {name}"] = above(content, 0.99) and above(first, 0.99)
    return Finding(measured, checks, nfe=400)
