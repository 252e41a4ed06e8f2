"""Noise-aware classifiers of token sequences, as energies that guides ask for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairlead.energy.base import CLEAN, Judge, whole
from fairlead.parameters import choose
from fairlead.schedules import Level


class Classifier(Judge):
    """`-log p(label | z)` by a network that reads noisy tokens and their time.

    Args:
        network: `(z, time)` to logits `(B, classes)`, or to a mapping of such by property. It
            also takes weights on tokens, `(B, L, size)`, for first-order guidance.
        label: The class asked for: one for all samples, or `(B,)`.
        property: Which property, where the network tells several.
        name: Name by which guides ask for it.

    Raises:
        ValueError: The label is no class.
    """

    noisy = True

    def __init__(
        self,
        network: Callable[..., Any],
        label: int | Tensor | list[int],
        property: str | None = None,
        name: str = "classifier",
    ) -> None:
        self.network, self.property, self.name = network, property, name
        self.label = whole(name, label)

    def log_probs(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        time = torch.full((len(z),), float(level.t), device=z.device)
        logits = self.network(z.float() if z.is_floating_point() else z, time)
        if isinstance(logits, dict):
            choose(self.name, "property", self.property, logits)
            logits = logits[self.property]
        return torch.log_softmax(logits.double(), -1)
