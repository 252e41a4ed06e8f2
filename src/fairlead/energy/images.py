"""Energies of pictures: colours and symmetry."""

import math
from typing import Literal

import torch
from torch import Tensor

from fairlead.energy.base import CLEAN, Energy
from fairlead.parameters import choose
from fairlead.schedules import Level

AXES = {"horizontal": (3,), "vertical": (2,), "both": (2, 3)}


class Colour(Energy):
    """Mean squared distance of an image's mean colour from a colour, per sample.

    Args:
        colour: One number a channel, in the units of the images.
        weight: Factor.
        name: How guides call it.

    Example:
        >>> import torch, fairlead as fl
        >>> fl.energy.Colour([1.0, 0.0, 0.0])(torch.zeros(1, 3, 2, 2))
        tensor([0.3333])
    """

    def __init__(self, colour: list[float], weight: float = 1.0, *, name: str = "colour") -> None:
        self.colour, self.weight, self.name = torch.tensor(colour), weight, name

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        _image(self.name, z, len(self.colour))
        return self.weight * (z.mean((2, 3)) - self.colour.to(z)).square().mean(1)


class Palette(Energy):
    r"""How far pixels are from the nearest colour of a palette, softened so that it has a gradient.

    .. math:: E = -\frac{h^2}{HW} \sum_{p} \log \frac1K \sum_k
              \exp\bigl(-\lVert z_p - c_k \rVert^2 / h^2\bigr)

    Args:
        colours: ``(K, C)``, in the units of the images.
        width: ``h``, > 0: below it colours are told apart.
        weight: Factor.
        name: How guides call it.

    Raises:
        ValueError: ``width`` is not positive, or ``colours`` is no table.

    Example:
        >>> import torch, fairlead as fl
        >>> fl.energy.Palette([[0.0], [1.0]], width=0.1)(torch.zeros(1, 1, 2, 2))
        tensor([0.0069])
    """

    def __init__(
        self,
        colours: Tensor | list[list[float]],
        width: float = 0.25,
        weight: float = 1.0,
        *,
        name: str = "palette",
    ) -> None:
        self.colours = torch.as_tensor(colours)
        if self.colours.ndim != 2:
            raise ValueError(f"Palette: colours must be (K, C), got {tuple(self.colours.shape)}")
        if not width > 0:
            raise ValueError(f"Palette: width must be positive, got {width}")
        self.width, self.weight, self.name = width, weight, name

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        _image(self.name, z, self.colours.shape[1])
        apart = z.flatten(2).mT[:, :, None] - self.colours.to(z)  # (B, HW, K, C)
        logits = -apart.square().sum(3) / self.width**2
        near = math.log(len(self.colours)) - logits.logsumexp(2)
        return self.weight * self.width**2 * near.mean(1)


class Symmetry(Energy):
    """Mean squared difference of an image and its mirror image, per sample.

    Args:
        axis: `horizontal` (left is right), `vertical` (up is down), or `both` (half a turn).
        weight: Factor.
        name: How guides call it.

    Example:
        >>> import torch, fairlead as fl
        >>> fl.energy.Symmetry()(torch.tensor([[[[0.0, 1.0]]]]))
        tensor([1.])
    """

    def __init__(
        self,
        axis: Literal["horizontal", "vertical", "both"] = "horizontal",
        weight: float = 1.0,
        *,
        name: str = "symmetry",
    ) -> None:
        choose("Symmetry", "axis", axis, AXES)
        self.axis, self.weight, self.name = axis, weight, name

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        _image(self.name, z)
        return self.weight * (z - z.flip(AXES[self.axis])).square().mean((1, 2, 3))


class TotalVariation(Energy):
    r"""Mean absolute difference of neighbouring pixels, per sample: low for smooth images.

    .. math:: E = \frac{1}{2} \bigl( \mathrm{mean} |z_{y+1,x} - z_{y,x}|
              + \mathrm{mean} |z_{y,x+1} - z_{y,x}| \bigr)

    Args:
        weight: Factor.
        power: Of the absolute difference, 1 or 2.
        name: How guides call it.

    Raises:
        ValueError: ``power`` is neither 1 nor 2; where it is used, if an image has a side of 1.

    Example:
        >>> import torch, fairlead as fl
        >>> fl.energy.TotalVariation()(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
        tensor([0.5000])
    """

    def __init__(
        self, weight: float = 1.0, power: int = 1, *, name: str = "total_variation"
    ) -> None:
        if power not in (1, 2):
            raise ValueError(f"TotalVariation: power must be 1 or 2, got {power}")
        self.weight, self.power, self.name = weight, power, name

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        _image(self.name, z)
        if min(z.shape[-2:]) < 2:
            raise ValueError(
                f"energy {self.name!r}: an image needs sides of at least 2, got "
                f"{tuple(z.shape[-2:])}"
            )
        parts = [z.diff(dim=dim).abs().pow(self.power).mean((1, 2, 3)) for dim in (2, 3)]
        return self.weight * (parts[0] + parts[1]) / 2


def _image(name: str, z: Tensor, channels: int | None = None) -> None:
    if z.ndim != 4 or (channels is not None and z.shape[1] != channels):
        wanted = "C" if channels is None else str(channels)
        raise ValueError(f"energy {name!r}: expected (B, {wanted}, H, W), got {tuple(z.shape)}")
