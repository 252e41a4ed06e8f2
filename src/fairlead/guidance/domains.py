"""Domains of predictions over a vocabulary: how they are combined, and how normalised."""

from typing import Literal

import torch
from torch import Tensor

from fairlead.guidance.node import CONTINUOUS, TOKEN_DOMAINS

DOMAINS = (*sorted(CONTINUOUS), *sorted(TOKEN_DOMAINS))

Normalise = Literal["softmax", "column", "project", "none"]

NORMALISE: dict[str, tuple[Normalise, ...]] = {
    "continuous": ("none",),
    "logprob": ("softmax", "none"),
    "posterior": ("softmax", "none"),
    "rates": ("none", "column"),
    "simplex": ("project", "none"),
}
"""What each domain allows, its default first."""

FLOOR = -1e6
"""Stands for the logarithm of 0: finite, so that differences of two of them are 0 and not NaN."""


def floored(log_p: Tensor) -> Tensor:
    """Log-probabilities with `FLOOR` in place of what is below it."""
    return log_p.clamp(min=FLOOR)


def normalised(log_p: Tensor, owner: str = "tokens") -> Tensor:
    """Log-probabilities that add up to 1 over the last dimension.

    Raises:
        ValueError: A row has no probability left; names it.
        FloatingPointError: A row is NaN or infinite; names it.
    """
    top = log_p.amax(-1)
    refused = ~((top > FLOOR / 2) & (top < torch.inf))  # also NaN
    if bool(refused.any()):
        first = tuple(refused.nonzero()[0].tolist())
        where = ", ".join(
            f"{name} {i}" for name, i in zip(("sample", "position", "row"), first, strict=False)
        )
        if not bool(top[first] <= FLOOR / 2):
            raise FloatingPointError(
                f"{owner}: the log-probabilities of {where or 'the only row'} are NaN or infinite: "
                "a model, a reward or the guide made them so"
            )
        raise ValueError(
            f"{owner}: the probabilities of {where or 'the only row'} add up to 0: every token is "
            "excluded by the model, a filter or the guide"
        )
    return torch.log_softmax(log_p, -1)


def project(p: Tensor) -> Tensor:
    """The nearest point of the simplex over the last dimension.

    Source: Duchi et al. (2008), by sorting; a row that is on the simplex stays as it is.
    """
    ordered = p.sort(-1, descending=True).values
    count = torch.arange(1, p.shape[-1] + 1, device=p.device, dtype=p.dtype)
    excess = (ordered.cumsum(-1) - 1) / count
    kept = (ordered > excess).sum(-1, keepdim=True)
    moved = (p - excess.gather(-1, kept - 1)).clamp(min=0)
    total = p.sum(-1, keepdim=True)
    inside = (p >= 0).all(-1, keepdim=True) & ((total - 1).abs() <= 1e-6)
    return torch.where(inside, p, moved)


def enter(value: Tensor, domain: str, name: str) -> Tensor:
    """A given prediction as it is combined.

    Raises:
        ValueError: A probability or rate is negative.
    """
    if domain in ("rates", "simplex") and bool((value < 0).any()):
        raise ValueError(f"combine: {name!r} must hold no negative {domain}, got {value.min():g}")
    if domain == "rates":
        return floored(value.log())
    return floored(value) if domain in ("logprob", "posterior") else value


def leave(value: Tensor, domain: str, normalise: Normalise, cond: Tensor | None) -> Tensor:
    """A combined prediction as it is given back.

    Raises:
        ValueError: A row of probabilities adds up to 0.
    """
    if domain in ("logprob", "posterior"):
        return normalised(value, "combine") if normalise == "softmax" else value
    if domain == "rates":
        if normalise == "column":
            assert cond is not None
            value = normalised(value, "combine") + cond.logsumexp(-1, keepdim=True)
        return value.exp()
    return project(value) if normalise == "project" else value
