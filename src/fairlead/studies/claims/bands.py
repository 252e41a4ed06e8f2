"""Claims of frequency-aware guidance."""

from fairlead.metrics import Estimate
from fairlead.schedules import EDM
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._pixels import Pixels
from fairlead.studies.claims._verdict import Check, agrees
from fairlead.studies.claims.frequency import gain, templates

# scales (low, high): gain on the smooth and on the checkerboard template
PUBLISHED = {(2, 2): (1.62, 1.62), (2, 5): (1.65, 2.33), (5, 2): (2.32, 1.62)}


@claim(
    "bands",
    ids=("S048",),
    claim="What a smaller size cannot show follows the high scale, the rest the low one.",
    setting="16x16 Gaussian images whose class mean is a smooth wave and a checkerboard, exact "
    "predictions, sigma 80 to 0.002, rho 7, 48 DDIM steps, band edge at 8x8, 200 samples",
    expected="scales (low, high): gain of wave and checkerboard: (2, 2) 1.62, 1.62; (2, 5) 1.65, "
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
        x = model.draw(f"cfg(2) | bands({high - 1}, {low - 1})", 48, 200).x
        found = gain(x, wave), gain(x, board)
        measured[f"({low}, {high})"] = list(found)
        for name, value, known in zip(("wave", "board"), found, published, strict=True):
            checks[f"{name} at ({low}, {high})"] = agrees(value, known, 0.005)
    wave_up = measured["(5, 2)"][0].value - measured["(2, 2)"][0].value
    board_up = measured["(2, 5)"][1].value - measured["(2, 2)"][1].value
    checks["the low scale moves the wave"] = wave_up > 0.5
    checks["the high scale moves the board"] = board_up > 0.5
    return Finding(measured, checks, nfe=96)
