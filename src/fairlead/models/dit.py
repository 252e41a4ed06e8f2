"""A small class-conditional diffusion transformer."""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.models.layers import Attention, LabelEmbedding, SelfAttention, TimeEmbedding


class Block(nn.Module):
    """Attention and a perceptron; the embedding shifts, scales and gates both.

    The gates start at zero (adaLN-zero), so that a new block is the identity.
    """

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(ratio * width, width),
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Tokens like the given ones; `embedding` is `(B, width)`."""
        parts = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        h = torch.addcmul(shift1, self.norm1(tokens), 1 + scale1)
        tokens = tokens + gate1 * self.attention(h)
        h = torch.addcmul(shift2, self.norm2(tokens), 1 + scale2)
        out: Tensor = tokens + gate2 * self.mlp(h)
        return out


class DiT(nn.Module):
    """Transformer over patches of pixels, conditioned on time and a class label.

    Attention layers are named `blocks.<i>`.

    Args:
        size: Side of the image in pixels, a multiple of `patch`.
        channels: Channels of the image.
        classes: Number of classes; label `classes` is the null condition.
        patch: Side of the pixel patches that become tokens.
        width: Token width, a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        ratio: Hidden width of the perceptrons in units of `width`.

    Raises:
        ValueError: The patch does not divide the size, or 4 or the heads the width.

    Shapes: image `(B, channels, size, size)`, time `(B,)`, label `(B,)` to an image.

    Source:
        Peebles & Xie (2022), arXiv:2212.09748.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        classes: int = 10,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"DiT: size {size} is no multiple of patch {patch}")
        if width % 4:
            raise ValueError(f"DiT: width must be a multiple of 4, got {width}")
        self.config = {
            "size": size,
            "channels": channels,
            "classes": classes,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "ratio": ratio,
        }
        self.patch, self.side = patch, size // patch
        self.time = TimeEmbedding(width)
        self.label = LabelEmbedding(classes, width)
        self.inputs = nn.Linear(channels * patch**2, width)
        self.positions = nn.Parameter(_sincos(self.side, width))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.outputs = nn.Linear(width, channels * patch**2)
        for layer in (self.modulation, self.outputs):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def residual_blocks(self) -> dict[str, nn.Module]:
        """The blocks by name, for guides that skip them."""
        return {f"blocks.{i}": block for i, block in enumerate(self.blocks)}

    @property
    def attention_layers(self) -> dict[str, Attention]:
        """The attention cores by name, in the order in which they act."""
        blocks = cast(Sequence[Block], self.blocks)
        return {f"blocks.{i}": block.attention.core for i, block in enumerate(blocks)}

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The prediction, shaped like `x`."""
        embedding = F.silu(self.time(t) + self.label(label))
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        tokens = self.inputs(tokens) + self.positions
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        tokens = self.outputs(torch.addcmul(shift, self.norm(tokens), 1 + scale))
        patches = tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
        return F.pixel_shuffle(patches, self.patch)


def _sincos(side: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates, where learned positions start: `(side^2, width)`."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
    waves = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).clone()
