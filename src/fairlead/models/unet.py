"""A small class-conditional U-Net with named attention layers."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.models.layers import Attention, LabelEmbedding, SelfAttention, TimeEmbedding


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; the embedding scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(16, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(16, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.affine.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """A feature map `(B, outputs, H, W)`."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        out: Tensor = self.skip(x) + self.conv2(self.dropout(h))
        return out


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(16, width)
        self.attention = SelfAttention(width, heads)
        nn.init.zeros_(self.attention.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """A feature map like `x`."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        out: Tensor = self.attention(tokens)
        return x + out.transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    """One block of a level: a residual block and, where asked, attention."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, heads: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, embedding, dropout)
        self.attend = AttentionBlock(outputs, heads) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """A feature map `(B, outputs, H, W)`."""
        x = self.residual(x, embedding)
        return x if self.attend is None else self.attend(x)


class UNet(nn.Module):
    """U-Net over patches of pixels, conditioned on time and a class label.

    Attention layers are named `down.<level>.<block>`, `mid.0` and `up.<level>.<block>`, with
    level 0 the finest.

    Args:
        size: Side of the image in pixels.
        channels: Channels of the image.
        classes: Number of classes; label `classes` is the null condition.
        patch: Side of the pixel patches that the first convolution takes as channels.
        widths: Channels of each level, finest first; multiples of 16.
        blocks: Residual blocks a level on the way down; one more on the way up.
        attention: Levels that have attention.
        heads: Attention heads.
        dropout: Dropout inside the residual blocks while training.

    Raises:
        ValueError: A width is no multiple of 16, or the levels do not divide the size.

    Shapes: image `(B, channels, size, size)`, time `(B,)`, label `(B,)` to an image.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        classes: int = 10,
        patch: int = 2,
        widths: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        attention: Sequence[int] = (1, 2),
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if any(w % 16 for w in widths):
            raise ValueError(f"UNet: widths must be multiples of 16, got {list(widths)}")
        if size % (patch * 2 ** (len(widths) - 1)):
            raise ValueError(
                f"UNet: size must be a multiple of {patch * 2 ** (len(widths) - 1)} for patch "
                f"{patch} and {len(widths)} levels, got {size}"
            )
        self.config = {
            "size": size,
            "channels": channels,
            "classes": classes,
            "patch": patch,
            "widths": list(widths),
            "blocks": blocks,
            "attention": list(attention),
            "heads": heads,
            "dropout": dropout,
        }
        self.patch = patch
        embedding = 4 * widths[0]
        self.time = TimeEmbedding(embedding)
        self.label = LabelEmbedding(classes, embedding)

        def stage(level: int, inputs: int) -> Stage:
            h = heads if level in attention else None
            return Stage(inputs, widths[level], embedding, h, dropout)

        self.inputs = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        self.downsample = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, w in enumerate(widths):
            self.down.append(
                nn.ModuleList(stage(level, width if i == 0 else w) for i in range(blocks))
            )
            skips += [w] * blocks
            if level < len(widths) - 1:
                self.downsample.append(nn.Conv2d(w, w, 3, stride=2, padding=1))
                skips.append(w)
            width = w
        self.mid = nn.ModuleList([stage(len(widths) - 1, width)])
        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for level in reversed(range(len(widths))):
            w = widths[level]
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(level, width + skips.pop()))
                width = w
            self.up.append(stages)
            if level:
                self.upsample.append(nn.Conv2d(w, w, 3, padding=1))
        self.norm = nn.GroupNorm(16, widths[0])
        self.outputs = nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.outputs.weight)

    @property
    def residual_blocks(self) -> dict[str, AttentionBlock]:
        """The attention blocks by the name of their layer, for guides that skip them."""
        cores = {id(core): name for name, core in self.attention_layers.items()}
        blocks = [m for m in self.modules() if isinstance(m, AttentionBlock)]
        return {cores[id(block.attention.core)]: block for block in blocks}

    @property
    def attention_layers(self) -> dict[str, Attention]:
        """The attention cores by name, in the order in which they act."""
        found = {}
        for side in ("down", "mid", "up"):
            for name, module in getattr(self, side).named_modules():
                if isinstance(module, AttentionBlock):
                    index, *block = name.removesuffix(".attend").split(".")
                    # `up` is stored coarsest first; names count levels from the finest
                    level = len(self.up) - 1 - int(index) if side == "up" else int(index)
                    found[".".join([side, str(level), *block])] = module.attention.core
        return found

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The prediction, shaped like `x`."""
        embedding = F.silu(self.time(t) + self.label(label))
        h = self.inputs(F.pixel_unshuffle(x, self.patch))
        skips = [h]
        for level, stages in enumerate(self.down):
            for stage in cast(nn.ModuleList, stages):
                h = stage(h, embedding)
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
                skips.append(h)
        for stage in self.mid:
            h = stage(h, embedding)
        for level, stages in enumerate(self.up):
            for stage in cast(nn.ModuleList, stages):
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
            if level < len(self.upsample):
                h = self.upsample[level](F.interpolate(h, scale_factor=2.0))
        return F.pixel_shuffle(self.outputs(F.silu(self.norm(h))), self.patch)
