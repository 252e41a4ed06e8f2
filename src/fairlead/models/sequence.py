"""Small transformers over tokens: a clean-token predictor and a noise-aware classifier."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.models.dit import Block
from fairlead.models.layers import Attention, LabelEmbedding, TimeEmbedding


class Trunk(nn.Module):
    """Bidirectional transformer over tokens, modulated by time and conditions.

    Args:
        tokens: Number of token values that it reads, the mask included.
        length: Length of a sequence.
        width: Token width, a multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        ratio: Hidden width of the perceptrons in units of `width`.
        time: Whether it reads the time.
    """

    def __init__(
        self, tokens: int, length: int, width: int, depth: int, heads: int, ratio: int, time: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(tokens, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.1)
        self.time = TimeEmbedding(width) if time else None
        self.base = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, z: Tensor, t: Tensor, embedding: Tensor | float = 0.0) -> Tensor:
        """Features `(B, L, width)` of tokens `(B, L)`, or of weights on them `(B, L, tokens)`."""
        if z.is_floating_point():
            h = z.to(self.embedding.dtype) @ self.embedding
        else:
            h = F.embedding(z, self.embedding)
        h = h + self.positions[: h.shape[1]]
        total = self.base + embedding
        if self.time is not None:
            total = total + self.time(t)
        total = F.silu(total).expand(len(h), -1)
        for block in self.blocks:
            h = block(h, total)
        shift, scale = self.modulation(total)[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm(h), 1 + scale)

    @property
    def attention_layers(self) -> dict[str, Attention]:
        """The attention cores by name, in the order in which they act."""
        blocks = cast(Sequence[Block], self.blocks)
        return {f"blocks.{i}": block.attention.core for i, block in enumerate(blocks)}


class TokenTransformer(nn.Module):
    """Predicts the clean token at every position of a noisy sequence.

    Args:
        tokens: Number of clean token values.
        length: Length of a sequence.
        conditions: Number of values of each condition by name; that number itself is null.
        mask: Whether it also reads a mask token, of index `tokens`.
        time: Whether it reads the time; masked diffusion does without.
        width: Token width, a multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        ratio: Hidden width of the perceptrons in units of `width`.

    Shapes: tokens `(B, L)`, or weights on them `(B, L, tokens + mask)`; time `(B,)`; each
    condition `(B,)`; to logits `(B, L, tokens)`.
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        conditions: Mapping[str, int] | None = None,
        mask: bool = False,
        time: bool = True,
        width: int = 192,
        depth: int = 5,
        heads: int = 6,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "tokens": tokens,
            "length": length,
            "conditions": dict(conditions or {}),
            "mask": mask,
            "time": time,
            "width": width,
            "depth": depth,
            "heads": heads,
            "ratio": ratio,
        }
        self.trunk = Trunk(tokens + mask, length, width, depth, heads, ratio, time)
        self.conditions = nn.ModuleDict(
            {name: LabelEmbedding(count, width) for name, count in (conditions or {}).items()}
        )
        self.outputs = nn.Linear(width, tokens)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    @property
    def attention_layers(self) -> dict[str, Attention]:
        """The attention cores by name, in the order in which they act."""
        return self.trunk.attention_layers

    def forward(self, z: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """Logits over the clean tokens; a condition that is not given counts as null."""
        embedding: Tensor | float = 0.0
        for name, module in self.conditions.items():
            label = condition.get(name)
            if label is None:
                null = cast(LabelEmbedding, module).num_embeddings - 1
                label = torch.full((len(z),), null, device=z.device)
            embedding = embedding + module(label)
        logits: Tensor = self.outputs(self.trunk(z, t, embedding))
        return logits


class TokenClassifier(nn.Module):
    """Classifies a noisy sequence, once for each property.

    Args:
        tokens: Number of clean token values.
        length: Length of a sequence.
        properties: Number of classes of each property by name.
        mask: Whether it also reads a mask token, of index `tokens`.
        time: Whether it reads the time.
        width: Token width, a multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        ratio: Hidden width of the perceptrons in units of `width`.

    Shapes: tokens `(B, L)`, or weights on them `(B, L, tokens + mask)`; time `(B,)`; to logits
    `(B, classes)` by name.
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        properties: Mapping[str, int],
        mask: bool = False,
        time: bool = True,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "tokens": tokens,
            "length": length,
            "properties": dict(properties),
            "mask": mask,
            "time": time,
            "width": width,
            "depth": depth,
            "heads": heads,
            "ratio": ratio,
        }
        self.trunk = Trunk(tokens + mask, length, width, depth, heads, ratio, time)
        self.heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in properties.items()})

    def forward(self, z: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Logits by property."""
        pooled = self.trunk(z, t).mean(1)
        return {name: head(pooled) for name, head in self.heads.items()}
