"""Claims of frequency-decoupled guidance."""

import math

import torch
from torch import Tensor

from fairlead.metrics import Estimate, mean_interval
from fairlead.schedules import EDM
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._pixels import Pixels
from fairlead.studies.claims._verdict import Check, agrees

# scales (low, high): gain on the smooth and on the checkerboard template
PUBLISHED = {(2, 2): (1.62, 1.62), (2, 5): (1.71, 2.33), (5, 2): (2.32, 1.62)}


def templates() -> tuple[Tensor, Tensor]:
    """`0.4 cos(pi X)`, `X` from 0 to 1, and a checkerboard of 0.3, on 16x16 pixels."""
    line = torch.linspace(0, 1, 16, dtype=torch.float64)
    sign = 1 - 2 * (torch.arange(16) % 2)
    return 0.4 * (math.pi * line).cos().expand(16, 16), 0.3 * torch.outer(sign, sign).double()


def gain(x: Tensor, template: Tensor) -> Estimate:
    """Share of a template in a sample, 1 where it is as in the mean of the class."""
    return mean_interval((x * template).flatten(1).sum(1) / (template**2).sum())


@claim(
    "frequency",
    ids=("XC4",),
    claim="Coarse structure follows the scale of the low band, detail that of the high band.",
    setting="16x16 Gaussian images whose class mean is a smooth wave and a checkerboard, exact "
    "predictions, sigma 80 to 0.002, rho 7, 48 DDIM steps, two levels, 200 samples",
    expected="scales (low, high): gain of wave and checkerboard: (2, 2) 1.62, 1.62; (2, 5) 1.71, "
    "2.33; (5, 2) 2.32, 1.62",
)
def pixels() -> Finding:
    """Each number agrees, and each band's scale moves its own template by more than 0.5."""
    wave, board = templates()
    model = Pixels(wave + board, EDM())
    measured: dict[str, list[Estimate]] = {}
    checks: dict[str, Check] = {}
    for (low, high), published in PUBLISHED.items():
        # factors of w - 1 = 1
        x = model.draw(f"cfg(2) | frequency([{high - 1}, {low - 1}])", 48, 200).x
        found = gain(x, wave), gain(x, board)
        measured[f"({low}, {high})"] = list(found)
        for name, value, known in zip(("wave", "board"), found, published, strict=True):
            checks[f"{name} at ({low}, {high})"] = agrees(value, known, 0.005)
    wave_up = measured["(5, 2)"][0].value - measured["(2, 2)"][0].value
    board_up = measured["(2, 5)"][1].value - measured["(2, 2)"][1].value
    checks["the low scale moves the wave"] = wave_up > 0.5
    checks["the high scale moves the board"] = board_up > 0.5
    return Finding(measured, checks, nfe=96)
