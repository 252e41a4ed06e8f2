"""A small residual classifier, whose features also measure samples."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """A 3x3 convolution, batch norm and GELU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.GELU(),
        )


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(width, width), ConvNorm(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, width, H, W)` to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class Classifier(nn.Module):
    """Residual network over patches of pixels; each level halves the side.

    Args:
        size: Side of the image in pixels.
        channels: Channels of the image.
        classes: Number of classes.
        patch: Side of the pixel patches that the first convolution takes as channels.
        widths: Channels of each level, finest first; the last is the number of features.

    Shapes: image in [-1, 1] `(B, channels, size, size)` to logits `(B, classes)`.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        classes: int = 10,
        patch: int = 2,
        widths: Sequence[int] = (64, 128, 208),
    ) -> None:
        super().__init__()
        self.config = {
            "size": size,
            "channels": channels,
            "classes": classes,
            "patch": patch,
            "widths": list(widths),
        }
        self.patch = patch
        self.inputs = ConvNorm(channels * patch**2, widths[0])
        self.levels = nn.Sequential(
            *(nn.Sequential(ConvNorm(a, b, stride=2), Residual(b)) for a, b in pairwise(widths))
        )
        self.outputs = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """The pooled last feature map, `(B, widths[-1])`."""
        h: Tensor = self.levels(self.inputs(F.pixel_unshuffle(x, self.patch)))
        return h.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, `(B, classes)`."""
        logits: Tensor = self.outputs(self.features(x))
        return logits
