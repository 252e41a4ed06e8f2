"""The testbed of claims on several conditions: a 2 x 2 grid of Gaussians."""

from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.exact import LabelledMixture, SequenceDenoiser
from fairlead.guidance.algebra import Guide
from fairlead.metrics import Estimate, mean_interval
from fairlead.sampling import Result
from fairlead.schedules import Level
from fairlead.studies.claims._exact import OnLevels

CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def grid(same: float, std: float = 0.5) -> LabelledMixture:
    """Means at +-1: condition `row` moves the first coordinate, `column` the second.

    Args:
        same: Probability of each cell whose two values are equal; 0.25 is independence.
        std: Standard deviation of each component.
    """
    other = 0.5 - same
    return LabelledMixture(
        [[2.0 * r - 1, 2.0 * c - 1] for r, c in CELLS],
        std**2,
        {"row": [r for r, _ in CELLS], "column": [c for _, c in CELLS]},
        [same, other, other, same],
    )


def levels(low: float, high: float, steps: int) -> list[Level]:
    """Variance-preserving levels, uniform in `lam = log(alpha / sigma)`."""
    made = []
    for lam in torch.linspace(low, high, steps + 1, dtype=torch.float64).tolist():
        squared = 1 / (1 + torch.tensor(-2 * lam, dtype=torch.float64).exp()).item()
        made.append(Level(1 - squared, squared**0.5, (1 - squared) ** 0.5))
    return made


def sample(
    denoiser: fl.Denoiser,
    guide: Guide | str,
    condition: dict[str, Any],
    at: list[Level],
    *,
    n: int,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Samples by DDIM on given levels, in float64; `condition` holds one number for all samples."""
    denoiser.schedule = OnLevels(levels=tuple(at))
    options = {"sampler": "ddim", "dtype": torch.float64, "record": False, **options}
    return fl.sample(
        denoiser,
        {k: torch.as_tensor(v) for k, v in condition.items()},
        guide=guide,
        n=n,
        seed=seed,
        steps=len(at) - 1,
        **options,
    )


def mean(x: Tensor, coordinate: int) -> Estimate:
    """Mean of a coordinate."""
    return mean_interval(x[:, coordinate])


def affine(
    denoiser: SequenceDenoiser, guide: Guide | str, history: Tensor, at: list[Level]
) -> tuple[Tensor, Tensor]:
    """Mean and covariance after DDIM where every prediction is affine in `x`; nothing is drawn.

    The chain is applied to 0 and to the unit vectors; the noise of a history is the same in both
    and so is left out of the covariance.
    """
    size = len(denoiser.sequence.free)
    x = torch.cat([torch.zeros(1, size), torch.eye(size)]).double() * at[0].sigma
    given = history.double().expand(size + 1, -1)
    condition = {"history": given, "history_level": torch.zeros_like(given)}
    ends = [sample(denoiser, guide, condition, at, n=size + 1, x=y).x for y in (x, 0 * x)]
    response = (ends[0] - ends[1])[1:]
    return ends[1][0], response.T @ response
