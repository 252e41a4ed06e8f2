"""Guidance over several conditions: any weighted sum of condition states."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from fairlead.guidance.algebra import ALL_DOMAINS, Context, Difference, Term, register
from fairlead.guidance.branch import COND, Branch
from fairlead.guidance.states import absent, branch

Weighted = tuple[float | tuple[float, ...], str, str]
"""A weight, one number or one a sample, and the two states whose difference it weighs."""


@register("multi", ids=("XM1", "XM2"), nfe=1, neutral="['label'], [[1.0, 'label', 'none']], 'none'")
@dataclass(frozen=True)
class Multi(Term):
    r"""Adds weighted differences between states of several conditions to the prediction of one.

    A state says which of the conditions are there, and in which form (see below). From a state
    ``S_0``, the origin,

    .. math:: D = D(S_0) + \sum_k w_k \, [D(S_k) - D(S'_k)]
                = \sum_S a_S \, D(S), \qquad \sum_S a_S = 1

    so the result is the same in x0, eps, v or u space. Equal states merge, and only those whose
    net coefficient ``a_S`` is not 0 are evaluated. Nested chains, independent sums and the other
    rules of the literature are functions that make such a term: ``nested``, ``independent``,
    ``joint``, ``dual``, ``split``, ``graph``, ``history``, ... (``fairlead methods``).

    States name what is there, joined by ``+``: ``text+image``; ``all`` is everything, ``none``
    is null throughout. ``style=other`` takes the value of the state ``other``
    (``fl.sample(states=...)``); ``history@0.3`` adds noise of level 0.3, ``history[0:4]`` keeps
    four frames; ``expert: text`` asks another model (``fl.sample(models=...)``). Conditions of the
    model that are not listed are there in every state.

    * Cost: one NFE for each state whose net coefficient is not 0, where ``all`` is the conditional
      prediction; 1 beside it for a single difference.
    * Neutral: weights of 1 along a chain from the origin to ``all``: the conditional model to the
      bit. Schedules fade the whole towards the conditional prediction.

    Args:
        conditions: Names of the guided conditions. ``text=negative``: where text is absent it is
            that of the state ``negative`` instead of null.
        terms: For each difference its weight (one number, or one a sample), the state that is
            pushed towards, and the one that is pushed away from.
        origin: The state that they are added to.

    Raises:
        ValueError: A state names something that is none of the conditions, or cannot be read; a
            weight is NaN or infinite; there is no condition.

    Example:
        >>> import fairlead as fl
        >>> str(fl.Multi(["label"], [[3.0, "label", "none"]], origin="none"))
        "multi(['label'], [[3.0, 'label', 'none']], origin='none')"

    Source:
        Liu, Li, Du, Torralba, Tenenbaum (2022), arXiv:2206.01714, and Brooks, Holynski, Efros
        (2023), arXiv:2211.09800, generalised.
    """

    domains: ClassVar[frozenset[str]] = ALL_DOMAINS

    conditions: Sequence[str]
    terms: Sequence[Sequence[Any]]
    origin: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", _tuple("conditions", self.conditions))
        rows = _tuple("terms", self.terms)
        object.__setattr__(self, "terms", tuple(_weighted(row) for row in rows))
        super().__post_init__()
        if not self.conditions:
            raise ValueError("multi: conditions must name at least one condition, got none")
        _ = self.coefficients

    @cached_property
    def coefficients(self) -> dict[Branch, float | tuple[float, ...]]:
        """Net coefficient of each state whose coefficient is not 0; they add up to 1."""
        known = absent("multi", self.conditions)
        total: dict[Branch, float | tuple[float, ...]] = {branch("multi", self.origin, known): 1.0}
        size = 1.0
        for weight, towards, away in self.terms:
            for state, sign in ((towards, 1.0), (away, -1.0)):
                at = branch("multi", state, known)
                total[at] = _plus(total.get(at, 0.0), sign, weight)
            size += max(map(abs, weight)) if isinstance(weight, tuple) else abs(weight)
        # what cancels is 0 but for rounding
        rounded = {b: _round(a, 1e-14 * size) for b, a in total.items()}
        return {b: a for b, a in rounded.items() if a not in (0.0, (0.0,))}

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        return tuple(
            (_negated(a), COND, b)
            for b, a in self.coefficients.items()
            if b != COND and (any(a) if isinstance(a, tuple) else a != 0.0)
        )

    def differences_at(self, ctx: Context) -> tuple[Difference, ...]:
        return self.differences

    @property
    def strength(self) -> float | tuple[float, ...]:
        return self.differences[0][0] if self.differences else 0.0

    @property
    def negative(self) -> Branch:
        return self.differences[0][2] if self.differences else COND


def _tuple(field: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"multi: {field} must be a list, got {value!r}")
    return tuple(value)


def _weighted(row: Any) -> Weighted:
    if isinstance(row, str) or not isinstance(row, Iterable) or len(parts := tuple(row)) != 3:
        raise ValueError(
            "multi: each of the terms must be a weight and two states, such as "
            f"[7.5, 'image+text', 'image'], got {row!r}"
        )
    weight, towards, away = parts
    weight = weight.tolist() if hasattr(weight, "tolist") else weight
    numbers = tuple(weight) if isinstance(weight, (list, tuple)) else (weight,)
    for number in numbers:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise TypeError(f"multi: a weight must be a number, got {number!r}")
        if not math.isfinite(number):
            raise ValueError(f"multi: weights must be finite, got {number}")
    floats = tuple(float(n) for n in numbers)
    return floats if isinstance(weight, (list, tuple)) else floats[0], towards, away


def _plus(
    total: float | tuple[float, ...], sign: float, weight: float | tuple[float, ...]
) -> float | tuple[float, ...]:
    if not isinstance(total, tuple) and not isinstance(weight, tuple):
        return total + sign * weight
    size = len(weight) if isinstance(weight, tuple) else len(total)  # type: ignore[arg-type]
    old = total if isinstance(total, tuple) else (total,) * size
    new = weight if isinstance(weight, tuple) else (weight,) * size
    if len(old) != len(new):
        raise ValueError(f"multi: weights are given for {len(old)} and for {len(new)} samples")
    return tuple(o + sign * n for o, n in zip(old, new, strict=True))


def _round(value: float | tuple[float, ...], tolerance: float) -> float | tuple[float, ...]:
    if isinstance(value, tuple):
        return tuple(0.0 if abs(v) <= tolerance else v for v in value)
    return 0.0 if abs(value) <= tolerance else value


def _negated(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    return tuple(-v for v in value) if isinstance(value, tuple) else -value
