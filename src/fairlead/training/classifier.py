"""Training of the small classifiers, and the reference statistics made of their features."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.models.classifier import Classifier
from fairlead.training.data import Images
from fairlead.training.trainer import generator


def train_classifier(
    network: nn.Module,
    data: Images,
    *,
    minutes: float = math.inf,
    max_steps: int | None = None,
    batch: int = 256,
    lr: float = 0.2,
    weight_decay: float = 5e-4,
    smoothing: float = 0.1,
    flip: bool = False,
    pad: int = 0,
    seed: int = 0,
    bf16: bool = True,
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
) -> dict[str, Any]:
    """Trains a classifier in place by Nesterov SGD under one cycle of the learning rate.

    The rate climbs linearly for the first fifth of the budget and falls linearly to 0.

    Args:
        network: Takes images in [-1, 1] to logits.
        data: Images and labels.
        minutes: Wall-clock budget.
        max_steps: Budget in steps; whichever of the two is spent first ends the training.
        batch: Images a step.
        lr: Largest learning rate.
        weight_decay: Decay of all parameters.
        smoothing: Label smoothing.
        flip: Mirror images at random.
        pad: Pixels by which crops move at random; the border is reflected.
        seed: Seed of everything random.
        bf16: Forward pass under bfloat16 autocast.
        progress: Called now and then with step, loss and share of the budget.

    Returns:
        Steps, images seen, seconds and the running loss.

    Raises:
        ValueError: There is no budget, or more than one batch is asked of too few images.
    """
    if max_steps is None and math.isinf(minutes):
        raise ValueError("train_classifier: give a budget as minutes= or max_steps=")
    if not 1 < batch <= len(data):
        raise ValueError(f"train_classifier: batch must be in [2, {len(data)}], got {batch}")
    device = next(network.parameters()).device
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    # float32 only while padding: torch reflects no bytes
    padded = F.pad(data.pixels.float(), [pad] * 4, mode="reflect").byte() if pad else data.pixels
    began, step, mean = time.monotonic(), 0, math.nan
    order, batches = torch.empty(0), len(data) // batch
    while True:
        seconds = time.monotonic() - began
        share = max(seconds / 60 / minutes, step / max_steps if max_steps else 0.0)
        if share >= 1:
            break
        if step % batches == 0:
            order = torch.randperm(len(data), generator=generator(seed, 1, step // batches))
        rows = order[step % batches * batch :][:batch]
        x = _augment(padded[rows], pad, flip, generator(seed, 0, step)).to(device)
        optimizer.param_groups[0]["lr"] = lr * min(share / 0.2, (1 - share) / 0.8)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(x.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(
            logits.float(), data.labels[rows].to(device), label_smoothing=smoothing
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        mean = value if math.isnan(mean) else 0.98 * mean + 0.02 * value
        step += 1
        if step % 20 == 0:
            progress({"step": step, "seconds": seconds, "loss": mean, "share": share})
    network.eval()
    return {
        "step": step,
        "images": step * batch,
        "seconds": time.monotonic() - began,
        "loss": mean,
    }


def _augment(padded: Tensor, pad: int, flip: bool, g: torch.Generator) -> Tensor:
    """Random crops and mirror images, in [-1, 1]."""
    rows = torch.arange(len(padded))
    height, width = (side - 2 * pad for side in padded.shape[-2:])
    if pad:
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        dy, dx = torch.randint(2 * pad + 1, (2, len(padded)), generator=g)
        padded = windows[rows, :, dy, dx]
    x = padded.float() / 127.5 - 1
    if flip:
        mirrored = torch.rand(len(x), generator=g) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x
