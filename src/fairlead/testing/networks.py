"""A small class-conditional network that counts its rows and can be made to fail."""

from collections.abc import Callable

import torch
from torch import Tensor

from fairlead.denoiser import Denoiser
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
            out = out + torch.sin(style.to(x).reshape(-1, 1, 1, 1) + x)
        self.rows += len(x)
        self.calls += 1
        return out if self.tamper is None else self.tamper(self.calls - 1, out)


def tiny_network(seed: int = 0, dtype: torch.dtype = torch.float32) -> TinyNetwork:
    """A tiny network; the layers that training starts from zero are random too.

    The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyNetwork()
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
) -> Denoiser:
    """A denoiser that serves every guide: null, named layers, embeddings, a weak model.

    Args:
        schedule: Noise schedule; EDM by default.
        prediction: What the network is taken to predict.
        seed: Seed of the weights; the weak model has the next one.
        dtype: Dtype of the weights.
        weak: Whether it has a weak model.
    """
    schedule = schedule or EDM()
    models = {}
    if weak:
        models["weak"] = tiny_denoiser(schedule, prediction, seed=seed + 1, dtype=dtype, weak=False)
    return Denoiser(
        tiny_network(seed, dtype),
        schedule,
        prediction,
        null={"label": 10, "style": 0},
        shape=(2, 8, 8),
        trained=("cond", "null", "label", "style"),
        time_embedding="time",
        embeddings={"label": "label"},
        choices={"label": 10},
        models=models,
    )
