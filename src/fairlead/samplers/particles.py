"""Weighted samples in groups: shares, effective sizes, and drawing anew."""

import torch
from torch import Tensor

from fairlead.samplers.base import Model


def shares(log_weights: Tensor, groups: Tensor) -> Tensor:
    """Weights `(B,)` that add up to 1 in each group; equal where a group has none at all."""
    out = torch.empty(len(groups), dtype=torch.float64)
    for group in set(groups.tolist()):
        rows = groups == group
        own = log_weights.double().cpu()[rows]
        out[rows] = (own if own.max() > -torch.inf else torch.zeros_like(own)).softmax(0)
    return out


def effective_share(weights: Tensor) -> float:
    """`1 / (n sum w^2)` of weights that add up to 1: in (0, 1], 1 where all are equal."""
    return 1 / (len(weights) * (weights**2).sum().item())


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    """`n` indices from one number in [0, 1): index `i` comes `n w_i` times, rounded up or down."""
    n = len(weights)
    return _invert(weights, (torch.arange(n, dtype=torch.float64) + u[0]) / n)


def multinomial(weights: Tensor, u: Tensor) -> Tensor:
    """`n` independent indices from `n` numbers in [0, 1)."""
    return _invert(weights, u)


def square(x: Tensor) -> Tensor:
    """Sum of squares of each sample, `(B, ...)` to `(B,)` in float64."""
    return (x.double() ** 2).flatten(1).sum(1)


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    cdf = weights.cumsum(0)
    return torch.searchsorted(cdf / cdf[-1], u, right=True).clamp(max=len(weights) - 1)


def resampled(
    model: Model, log_weights: Tensor, threshold: float, scheme: str = "systematic"
) -> tuple[Tensor, Tensor]:
    """Draws each group anew whose effective share is below a threshold; the others stay.

    Args:
        model: Gives the groups and the random numbers.
        log_weights: `(B,)`.
        threshold: Effective share; above 1 every group is drawn.
        scheme: `systematic` or `multinomial`.

    Returns:
        `(B,)` index of the sample that takes each place, and `(B,)` whether it was drawn.
    """
    groups = model.groups
    weights = shares(log_weights, groups)
    index = torch.arange(len(groups))
    drawn = torch.zeros(len(groups), dtype=torch.bool)
    for group in sorted(set(groups.tolist())):
        rows = (groups == group).nonzero().flatten()
        if effective_share(weights[rows]) < threshold:
            u = model.uniform(f"resample {group}", len(rows))
            draw = systematic if scheme == "systematic" else multinomial
            index[rows] = rows[draw(weights[rows], u)]
            drawn[rows] = True
    return index.to(log_weights.device), drawn.to(log_weights.device)


def scored(model: Model, name: str, x0: Tensor) -> Tensor:
    """The reward of clean samples, `(B,)` in float64.

    Raises:
        ValueError: The reward has another shape; names it.
    """
    value = model.reward(name)(x0)
    if tuple(value.shape) != (len(x0),):
        raise ValueError(
            f"reward {name!r}: it must return one number a sample, ({len(x0)},), "
            f"got {tuple(value.shape)} at step {model.step}"
        )
    return value.detach().double()
