"""Convolutions that see further: re-dilation for samples larger than those of training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.guidance.branch import Branch, Perturbation
from fairlead.guidance.context import Context
from fairlead.layers import match_layers


@dataclass(frozen=True)
class Dilation(Perturbation):
    """Convolutions as if their kernels were `factor` times as large.

    With ``d = ceil(factor)`` the input is resized by ``d / factor``, convolved with dilation ``d``,
    and the result resized to the size that it would have had. Factor 1 changes nothing.
    """

    layers: str | tuple[str, ...]
    factor: float
    fixed: bool = False

    def modules(self, denoiser: Denoiser) -> list[nn.Module]:
        network = denoiser.network
        found = dict(network.named_modules()) if isinstance(network, nn.Module) else {}
        known = {
            name: module
            for name, module in found.items()
            if isinstance(module, nn.Conv2d) and min(module.kernel_size) > 1
        }
        if self.layers == "all" and known:
            return list(known.values())
        patterns = "**" if self.layers == "all" else self.layers
        return match_layers("redilate", patterns, known, "convolution")

    def __call__(
        self, inputs: Mapping[str, Any], output: Tensor, rows: Sequence[int], ctx: Context
    ) -> Tensor:
        return output

    def on(
        self,
        module: nn.Module,
        inputs: Mapping[str, Any],
        output: Tensor,
        rows: Sequence[int],
        ctx: Context,
    ) -> Tensor:
        if self.factor == 1:
            return output
        conv, x = cast(nn.Conv2d, module), inputs["input"]
        d = math.ceil(self.factor)
        if d != self.factor:
            x = F.interpolate(x, scale_factor=d / self.factor, mode="bilinear")
        spread = [d * own for own in conv.dilation]
        padding = [s * (k - 1) // 2 for s, k in zip(spread, conv.kernel_size, strict=True)]
        y = F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, spread, conv.groups)
        if y.shape != output.shape:
            y = F.interpolate(y, output.shape[2:], mode="bilinear")
        return y


def dilated(branch: Branch, dilation: Dilation) -> Branch:
    """A branch under a dilation, unless it has one that stays."""
    if any(isinstance(p, Dilation) and p.fixed for p in branch.perturbations):
        return branch
    return replace(branch, perturbations=(*branch.perturbations, dilation))
