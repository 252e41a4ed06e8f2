"""Energies of what a decoder makes of a sample."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fairlead.energy.base import CLEAN, Energy, Judge, of
from fairlead.schedules import Level

Decode = Callable[[Tensor], Tensor]
"""From latents `(B, ...)` to what is judged, such as pictures `(B, 3, H, W)`; differentiable."""


class Decoded(Energy):
    """An energy of `decode(z)`; made by `decoded`."""

    def __init__(self, energy: Energy, decode: Decode) -> None:
        self.energy, self.decode, self.name = energy, decode, energy.name

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        return self.energy(self.decode(z), level)


class DecodedJudge(Judge):
    """A judge of `decode(z)`; made by `decoded`."""

    def __init__(self, judge: Judge, decode: Decode) -> None:
        self.judge, self.decode = judge, decode
        self.name, self.label = judge.name, judge.label

    def log_probs(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        return self.judge.log_probs(self.decode(z), level)

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        return self.judge.towards(self.label)(self.decode(z), level)


def decoded(energy: Any, decode: Decode) -> Energy:
    """An energy on pictures as one on latents: `E(decode(z))`, under the same name.

    Args:
        energy: Judges what the decoder makes; an energy, or a function `(B, ...)` to `(B,)`.
        decode: From latents to what is judged.

    Raises:
        ValueError: The energy is a name, or judges noisy samples, which no decoder knows.

    Example:
        >>> import torch, fairlead as fl
        >>> bright = fl.energy.Function(lambda image: -image.mean((1, 2, 3)), name="bright")
        >>> e = fl.energy.decoded(bright, lambda z: 2 * z)
        >>> e(torch.ones(1, 3, 2, 2))
        tensor([-2.])
    """
    found = getattr(of("decoded", energy), "energy", None)
    if not isinstance(found, Energy):
        raise ValueError(f"decoded: energy must be an energy or a function, got {energy!r}")
    if found.noisy:
        raise ValueError(
            f"decoded: the energy {found.name!r} judges noisy samples, and decoders know clean "
            "ones; let it judge latents"
        )
    return DecodedJudge(found, decode) if isinstance(found, Judge) else Decoded(found, decode)
