"""Layers that the reference networks share: named self-attention and embeddings."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """The attention proper, without parameters: what guides read and replace for their rows.

    Args:
        kind: Whether it attends to the image's own tokens or to a text's.

    Shapes: queries, keys and values `(B, heads, N, d)` to `(B, heads, N, d)`.
    """

    def __init__(self, kind: Literal["self", "cross"] = "self") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention of every query over all keys."""
        return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens, fused; `core` is the attention proper.

    Args:
        width: Token width, a multiple of `heads`.
        heads: Number of heads.

    Raises:
        ValueError: The heads do not divide the width.

    Shapes: tokens `(B, N, width)` to `(B, N, width)`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"self-attention: width {width} is no multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.core = Attention()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens that have seen each other."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        out = self.core(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        mixed: Tensor = self.out(out.transpose(1, 2).flatten(-2))
        return mixed


class TimeEmbedding(nn.Module):
    """Random Fourier features of the network's time, then a two-layer perceptron.

    Shapes: time `(B,)` to `(B, width)`.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int, features: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """The embedding of the times."""
        waves = torch.cos(t[:, None] * self.frequencies + self.phases) * math.sqrt(2)
        embedding: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return embedding


class LabelEmbedding(nn.Embedding):
    """Class embedding with one more row, the last, for the null condition.

    Floating-point input is an embedding already and passes through, so that guidance can
    act behind the embedding (CADS, Gaussian ICG).

    Shapes: labels `(B,)`, or embeddings `(B, width)`, to `(B, width)`.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        """The embedding of the labels."""
        return label if label.is_floating_point() else super().forward(label)
