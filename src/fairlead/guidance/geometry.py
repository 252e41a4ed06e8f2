"""Lengths and directions of predictions, per sample, over all dimensions but the first."""

import torch
from torch import Tensor

from fairlead.guidance.context import Context, Weight

Over = tuple[int, ...] | None
"""Dimensions that a length or a product runs over; `None`: all but the first."""


def over_token(owner: str, dim: int | None, ndim: int) -> Over:
    """The dimension that holds the numbers of one token, or all of a sample.

    Raises:
        ValueError: Predictions have no such dimension; names the owner.
    """
    if dim is None:
        return None
    if not -ndim < dim < ndim:
        raise ValueError(
            f"{owner}: dim must be in 1..{ndim - 1} or -{ndim - 1}..-1 for predictions of "
            f"{ndim} dimensions, got {dim}"
        )
    return (dim,)


def norm(x: Tensor, over: Over = None) -> Tensor:
    """L2 norm per sample, kept as dimensions of size 1 so that it broadcasts."""
    size: Tensor = torch.linalg.vector_norm(x, dim=over or tuple(range(1, x.ndim)), keepdim=True)
    return size


def inner(x: Tensor, y: Tensor, over: Over = None) -> Tensor:
    """Inner product per sample, kept as dimensions of size 1 so that it broadcasts."""
    return (x * y).sum(over or tuple(range(1, x.ndim)), keepdim=True)


def opposed(base: Tensor, update: Tensor, ctx: Context) -> tuple[Tensor, Weight]:
    """What the terms before a rule push away from, as one prediction, and their signed weight.

    After one term that is its negative branch: `cfg(w)` gives the null prediction and `w - 1`.
    After a sum it is the prediction `n` that one term of the summed weight `W` would have to
    name, `update = W (base - n)`. Where the weights cancel, `W = 0` and `n = base - update`.

    Args:
        base: Base prediction, in the space of the update.
        update: What the rule is given, before it changes anything.
        ctx: The evaluation, inside the rule.
    """
    below = (*ctx.place, 0)
    terms = ctx.plan.terms.items()
    weight: Weight = sum(
        (w for place, parts in terms if place[: len(below)] == below for w, *_ in parts), 0.0
    )
    if isinstance(weight, Tensor):
        return base - update / torch.where(weight == 0, 1.0, weight), weight
    return base - update / (weight or 1.0), weight


def project(x: Tensor, onto: Tensor, over: Over = None) -> Tensor:
    """The part of `x` along `onto`, per sample; 0 where `onto` is 0."""
    square = inner(onto, onto, over).clamp(min=torch.finfo(onto.dtype).tiny)
    share: Tensor = inner(x, onto, over) / square
    return onto * share
