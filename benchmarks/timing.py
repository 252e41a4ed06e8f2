"""Ratios that can be trusted: two callables in turn, median and spread of the quotient."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of `ours / theirs`, and the median time of each in microseconds."""

    ours: float
    theirs: float
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.ours:12.1f} us {self.theirs:12.1f} us   "
            f"ratio {self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"
        )


def ratio(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    repeats: int = 60,
    number: int = 20,
    warmup: int = 5,
    calls: int | None = None,
) -> Ratio:
    """Times both in turn, `number` calls at a time, and pairs them repeat by repeat.

    `calls` is the number of calls of ours, where it is to differ from that of theirs.
    """
    for _ in range(warmup):
        ours()
        theirs()
    a, b = [], []
    for _ in range(repeats):
        a.append(_time(ours, calls or number))
        b.append(_time(theirs, number))
    quotients = [x / y for x, y in zip(a, b, strict=True)]
    low, median, high = statistics.quantiles(quotients, n=4)
    return Ratio(statistics.median(a), statistics.median(b), median, low, high)


def _time(call: Callable[[], object], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number * 1e6
