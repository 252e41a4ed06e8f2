"""A small class-conditional network that counts its rows and can be made to fail."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.models.layers import Attention
from fairlead.models.unet import UNet
from fairlead.prediction import PredictionType
from fairlead.schedules import EDM, NoiseSchedule


class TinyNetwork(UNet):
    """A U-Net of 50,000 random weights for 8x8 images; attention layers `down.0.0`, `mid.0`, ...

    Attributes:
        rows: Rows predicted so far.
        calls: Calls so far.
        tamper: Called with the number of this call, from 0, and the output; returns what to
            put out instead, or raises.
    """

    def __init__(self) -> None:
        super().__init__(
            size=8, channels=2, classes=10, patch=2, widths=(16,), blocks=1, attention=(0,), heads=2
        )
        self.rows = 0
        self.calls = 0
        self.tamper: Callable[[int, Tensor], Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor, label: Tensor, style: Tensor | None = None) -> Tensor:
        """The prediction, shaped like `x`; `style`, a number a sample, where it is given."""
        out = super().forward(x, t, label)
        if style is not None:
            out = out + 0.1 * style.to(x).reshape(-1, 1, 1, 1) * torch.tanh(out)
        self.rows += len(x)
        self.calls += 1
        return out if self.tamper is None else self.tamper(self.calls - 1, out)


class TinyTextNetwork(TinyNetwork):
    """A tiny network whose label is a text of four tokens, seen by the cross-attention `text.0`.

    Floating-point labels are the tokens themselves, `(B, L, 8)`.

    Args:
        adapter: Whether the cross-attention sees the tokens as an image prompt, too.
    """

    def __init__(self, adapter: bool = False) -> None:
        super().__init__()
        self.tokens = TextEmbedding(10, 4, 8)
        self.cross = CrossAttention(8, 8, 2, adapter)

    @property
    def attention_layers(self) -> dict[str, Attention]:
        """The cross-attention first, as it acts first."""
        return {"text.0": self.cross.core, **super().attention_layers}

    def forward(self, x: Tensor, t: Tensor, label: Tensor, style: Tensor | None = None) -> Tensor:
        """The prediction, shaped like `x`."""
        patches = F.pixel_unshuffle(x, self.patch)
        seen = self.cross(patches.flatten(2).transpose(1, 2), self.tokens(label))
        x = x + F.pixel_shuffle(seen.transpose(1, 2).reshape(patches.shape), self.patch)
        return super().forward(x, t, x.new_zeros(len(x), self.label.embedding_dim), style)


class TextEmbedding(nn.Embedding):
    """Tokens of a label, `(B, L, width)`; floating-point input passes through."""

    def __init__(self, classes: int, length: int, width: int) -> None:
        super().__init__(classes + 1, length * width)
        self.length = length

    def forward(self, label: Tensor) -> Tensor:
        """The tokens."""
        if label.is_floating_point():
            return label
        return super().forward(label).reshape(len(label), self.length, -1)


class CrossKeys(nn.Module):
    """Keys and values of an image prompt."""

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(text, width), nn.Linear(text, width)

    def forward(self, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Both, `(B, heads, L, d)`."""
        parts = (self.key(tokens), self.value(tokens))
        k, v = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in parts)
        return k, v


class AdaptedAttention(Attention):
    """Attention to a text, and to an image prompt that an adapter adds times `scale`."""

    adapters = 1

    def __init__(self) -> None:
        super().__init__("cross")
        self.scale = 1.0

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_style: Tensor | None = None,
        v_style: Tensor | None = None,
    ) -> Tensor:
        """The sum of both."""
        out = super().forward(q, k, v)
        if k_style is None or v_style is None:
            return out
        return out + self.scale * super().forward(q, k_style, v_style)


class CrossAttention(nn.Module):
    """Attention of tokens `(B, N, width)` over those of a text `(B, L, text)`.

    With an adapter it adds attention under further keys and values, scaled by `scale`.
    """

    def __init__(self, width: int, text: int, heads: int, adapter: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(text, width), nn.Linear(text, width)
        self.core = AdaptedAttention() if adapter else Attention("cross")
        self.adapter = CrossKeys(width, text) if adapter else None

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """What the text says to each token."""
        parts = (self.query(tokens), self.key(text), self.value(text))
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        style = () if self.adapter is None else self.adapter(text, self.heads)
        seen: Tensor = self.out(self.core(q, k, v, *style).transpose(1, 2).flatten(2))
        return seen


def tiny_network(
    seed: int = 0, dtype: torch.dtype = torch.float32, *, text: bool = False, adapter: bool = False
) -> TinyNetwork:
    """A tiny network; the layers that training starts from zero are random too.

    The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyTextNetwork(adapter) if text else TinyNetwork()
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    return network.to(dtype).eval().requires_grad_(False)


def tiny_denoiser(
    schedule: NoiseSchedule | None = None,
    prediction: PredictionType = "sample",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    weak: bool = True,
    text: bool = False,
    adapter: bool = False,
) -> Denoiser:
    """A denoiser that serves every guide: null, named layers, embeddings, a weak model.

    Args:
        schedule: Noise schedule; EDM by default.
        prediction: What the network is taken to predict.
        seed: Seed of the weights; the weak model has the next one.
        dtype: Dtype of the weights.
        weak: Whether it has a weak model.
        text: Whether its label is a text under cross-attention (`TinyTextNetwork`).
        adapter: Whether its text is an image prompt, too.
    """
    schedule = schedule or EDM()
    models = {}
    if weak:
        models["weak"] = tiny_denoiser(
            schedule, prediction, seed=seed + 1, dtype=dtype, weak=False, text=text, adapter=adapter
        )
    return Denoiser(
        tiny_network(seed, dtype, text=text, adapter=adapter),
        schedule,
        prediction,
        null={"label": 10, "style": 0},
        shape=(2, 8, 8),
        trained=("cond", "null", "label", "style"),
        time_embedding="time",
        embeddings={"label": "tokens" if text else "label"},
        choices={"label": 10},
        models=models,
    )
