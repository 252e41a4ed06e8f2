"""Search for the scales of training-free guidance."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fairlead.guidance.energy.tfg import TFG

KNOBS = ("rho", "mu", "gamma")


@dataclass(frozen=True)
class Found:
    """What a search ends with.

    Attributes:
        guide: The best guide.
        score: Its score.
        tried: Every guide that was scored, with its score, in order.
    """

    guide: TFG
    score: float
    tried: list[tuple[TFG, float]]


def search_tfg(
    guide: TFG,
    score: Callable[[TFG], float],
    *,
    beam: int = 2,
    rounds: int = 5,
    cap: float = 16.0,
    trials: int | None = None,
    seed: int = 0,
) -> Found:
    """Finds `rho`, `mu` and `gamma` of TFG for a task.

    As published, a beam search: from small values each of the best guides doubles one of the three,
    and the best few go on, until none gets better. With `trials` a tree-structured Parzen
    estimator searches the same range instead.

    Args:
        guide: Where to start, with small positive scales; those that are 0 stay 0.
        score: From a guide to a number, higher is better: a metric on a small batch.
        beam: Guides that go on to the next round, >= 1.
        rounds: Most rounds, >= 1.
        cap: Largest factor on each starting value, >= 2.
        trials: Number of guides to try with optuna (`pip install "fairlead[search]"`).
        seed: Of that search.

    Returns:
        The best guide, its score, and all that were tried.

    Raises:
        ValueError: A number is out of range, or every scale starts at 0.

    Example:
        >>> import fairlead as fl
        >>> start = fl.TFG("measurement", rho=0.25, mu=0.25)
        >>> found = search_tfg(start, lambda g: -abs(g.rho - 1) - abs(g.mu - 0.5))
        >>> str(found.guide), len(found.tried)
        ("tfg('measurement', rho=1.0, mu=0.5)", 11)

    Source:
        Ye et al. (2024), arXiv:2409.15761; the alternative is optuna's sampler.
    """
    for name, value, least in (("beam", beam, 1), ("rounds", rounds, 1), ("cap", cap, 2)):
        if not value >= least:
            raise ValueError(f"search_tfg: {name} must be at least {least}, got {value}")
    knobs = [k for k in KNOBS if getattr(guide, k)]
    if not knobs:
        raise ValueError("search_tfg: rho, mu and gamma all start at 0; give small positive values")
    scores: dict[TFG, float] = {}

    def measured(candidate: TFG) -> float:
        if candidate not in scores:
            found = float(score(candidate))
            scores[candidate] = found if math.isfinite(found) else -math.inf
        return scores[candidate]

    if trials is not None:
        _parzen(guide, knobs, measured, cap, trials, seed)
    else:
        best = [guide]
        measured(guide)
        for _ in range(rounds):
            doubled = [
                _doubled(g, k)
                for g in best
                for k in knobs
                if 2 * getattr(g, k) <= cap * getattr(guide, k)
            ]
            before = best
            best = sorted({*best, *doubled}, key=measured, reverse=True)[:beam]
            if set(best) == set(before):
                break
    top = max(scores, key=scores.__getitem__)
    return Found(top, scores[top], list(scores.items()))


def _doubled(guide: TFG, knob: str) -> TFG:
    change: dict[str, Any] = {knob: 2 * getattr(guide, knob)}
    return replace(guide, **change)


def _parzen(
    guide: TFG,
    knobs: list[str],
    measured: Callable[[TFG], float],
    cap: float,
    trials: int,
    seed: int,
) -> None:
    try:
        import optuna
    except ImportError:
        raise ImportError('this search needs optuna: pip install "fairlead[search]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: "optuna.Trial") -> float:
        values: dict[str, Any] = {}
        for k in knobs:
            low = getattr(guide, k)
            values[k] = trial.suggest_float(k, low, cap * low, log=True)
        return max(measured(replace(guide, **values)), -1e30)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials)
