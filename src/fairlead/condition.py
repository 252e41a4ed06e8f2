"""Conditions: named batched tensors that a prediction depends on."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fairlead.parameters import nearest


class Condition(Mapping[str, Tensor]):
    """An immutable mapping from name to a tensor whose first dimension is the batch.

    Args:
        tensors: Values by name; numbers and lists become tensors. A value without a batch
            dimension holds for every sample once `expand` is called.

    Raises:
        ValueError: The values disagree on the batch.

    Example:
        >>> c = Condition({"label": [3, 5], "text": torch.zeros(2, 4)})
        >>> len(c.only("text")), c.batch
        (1, 2)
    """

    def __init__(self, tensors: Mapping[str, Any] | None = None) -> None:
        self.tensors = {k: torch.as_tensor(v) for k, v in (tensors or {}).items()}
        sizes = {k: len(v) for k, v in self.tensors.items() if v.ndim}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"condition: batches differ: {sizes}")
        self.batch = next(iter(sizes.values()), None)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyError(f"condition: no {name!r}; {nearest(name, self.tensors)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}: {tuple(v.shape)}" for k, v in self.items())
        return f"Condition({inside})"

    def only(self, *names: str) -> "Condition":
        """The part with the given names."""
        return Condition({name: self[name] for name in names})

    def replace(self, **tensors: Any) -> "Condition":
        """A copy in which the given values stand."""
        return Condition({**self.tensors, **tensors})

    def where(self, mask: Tensor, other: "Condition") -> "Condition":
        """Per sample, this condition where `mask` is true and `other` elsewhere.

        Shapes: mask `(B,)`.
        """
        pick = {
            k: torch.where(mask.reshape(-1, *[1] * (v.ndim - 1)), v, other[k])
            for k, v in self.items()
        }
        return Condition(pick)

    def rows(self, index: Tensor | slice) -> "Condition":
        """The samples `index` of the batch."""
        return Condition({k: v[index] for k, v in self.items()})

    def expand(self, batch: int) -> "Condition":
        """Repeats values without a batch dimension, or of batch 1, to `batch` samples.

        Raises:
            ValueError: A value has another batch; names it and both numbers.
        """
        grown = {}
        for k, v in self.items():
            v = v[None] if v.ndim == 0 else v
            if len(v) not in (1, batch):
                raise ValueError(f"condition: {k} has batch {len(v)}, but x has batch {batch}")
            grown[k] = v.expand(batch, *v.shape[1:]) if len(v) != batch else v
        return Condition(grown)

    def to(self, device: torch.device) -> "Condition":
        """A copy on a device."""
        return Condition({k: v.to(device) for k, v in self.items()})


def concatenate(parts: list[Condition]) -> Condition:
    """Stacks conditions of the same names along the batch."""
    if len(parts) == 1:
        return parts[0]
    return Condition({k: torch.cat([p[k] for p in parts]) for k in parts[0]})
