"""From numbers with intervals to yes, no or cannot tell."""

import math
from collections.abc import Iterable
from typing import Literal

from fairlead.metrics import Estimate

Check = bool | None
"""Whether a statement holds; `None` where the interval straddles."""

Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


def verdict(checks: Iterable[Check]) -> Verdict:
    """One statement that fails decides; else one that cannot be told; none at all tells nothing."""
    found = list(checks)
    if any(c is False for c in found):
        return "not reproduced"
    return "reproduced" if found and all(found) else "inconclusive"


def above(value: Estimate, bound: float = 0.0) -> Check:
    """Whether the whole interval lies above the bound, below it, or neither."""
    if math.isnan(value.low) or math.isnan(value.high):
        return None
    if value.low > bound:
        return True
    return False if value.high <= bound else None


def below(value: Estimate, bound: float = 0.0) -> Check:
    """Whether the whole interval lies below the bound, above it, or neither."""
    return above(Estimate(-value.value, -value.high, -value.low), -bound)


def equals(value: float, published: float, tolerance: float) -> Check:
    """Whether an exact number is the published one; give half a unit of its last digit."""
    return abs(value - published) <= tolerance


def agrees(value: Estimate, published: float, rounding: float) -> Check:
    """Whether a number from samples is a published one from as many other samples.

    Both have the standard error that the 95 % interval tells, so their difference is normal
    with `sqrt(2)` times it; three such deviations and the rounding are allowed. Of 20 numbers
    that agree one falls outside in 5 % of runs.
    """
    error = (value.high - value.low) / (2 * 1.96)
    return abs(value.value - published) <= 3 * math.sqrt(2) * error + rounding


def difference(a: Estimate, b: Estimate) -> Estimate:
    """`a - b` of independent estimates, by the normal approximation."""
    half = math.hypot(a.high - a.low, b.high - b.low) / 2
    value = a.value - b.value
    return Estimate(value, value - half, value + half)
