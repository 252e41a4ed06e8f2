"""One step of a guide on given branch values, and strategies that draw some."""

from typing import Any

import torch
from torch import Tensor

from fairlead.guidance.algebra import Guide
from fairlead.guidance.combine import combine as combine_branches
from fairlead.guidance.context import Run


def combine(
    guide: Guide | str, cond: Tensor, null: Tensor, run: Run | None = None, **options: Any
) -> Tensor:
    """`fl.combine` on a conditional and a null prediction, each `(B, ...)`."""
    return combine_branches(guide, {"cond": cond, "null": null}, run=run, **options)


def pairs(batch: int = 2, size: int = 4, magnitude: float = 10.0) -> Any:
    """A hypothesis strategy: two float64 tensors `(batch, size)`, a cond and a null prediction.

    Needs hypothesis: `pip install "fairlead[dev]"`.
    """
    from hypothesis import strategies as st

    numbers = st.floats(-magnitude, magnitude, allow_subnormal=False, width=32)
    tensors = st.lists(numbers, min_size=batch * size, max_size=batch * size).map(
        lambda values: torch.tensor(values, dtype=torch.float64).reshape(batch, size)
    )
    return st.tuples(tensors, tensors)
