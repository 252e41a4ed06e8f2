"""Training of the small classifiers, and the reference statistics made of their features."""

import math
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fairlead.models.classifier import Classifier
from fairlead.models.zoo import classifier, save
from fairlead.parameters import choose
from fairlead.training.data import DATASETS, Images
from fairlead.training.trainer import generator

CONFIGS: dict[str, dict[str, Any]] = {
    "cifar10-classifier": {"size": 32, "channels": 3, "patch": 2, "widths": (64, 128, 208)},
    "cifar10-judge": {"size": 32, "channels": 3, "patch": 2, "widths": (80, 144, 240)},
    "digits-classifier": {"size": 8, "channels": 1, "patch": 1, "widths": (32, 64)},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "cifar10-classifier": {"minutes": 5.0, "flip": True, "pad": 4},
    "cifar10-judge": {"minutes": 11.0, "flip": True, "pad": 4, "seed": 1},
    "digits-classifier": {"max_steps": 600, "batch": 128, "pad": 1, "bf16": False},
}
TEST_FEATURES = 2000


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
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
        loss.backward()  # type: ignore[no-untyped-call]
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


def run_classifier(
    name: str,
    destination: Path | str,
    data_root: Path | str | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Trains one of the classifiers of images and writes it, its card and its statistics.

    Args:
        name: A key of `CONFIGS`, such as `cifar10-judge`.
        destination: Folder of the model and of its reference; see `ship_classifier`.
        data_root: Folder of the data sets; see `training.data.data_root`.
        progress: As for `train_classifier`.
        minutes: Wall-clock budget in place of the usual one.

    Returns:
        Steps, images seen, seconds, the running loss and the test accuracy.

    Raises:
        ValueError: Unknown name.
        FileNotFoundError: The data are not there.
    """
    choose("run_classifier", "name", name, CONFIGS)
    source = DATASETS[name.partition("-")[0]]
    data = source("train", data_root)
    options = OPTIONS[name] | ({} if minutes is None else {"minutes": minutes, "max_steps": None})
    with torch.random.fork_rng():
        torch.manual_seed(options.get("seed", 0))
        network = Classifier(**CONFIGS[name], classes=len(data.classes))
        info = train_classifier(network, data, progress=progress, **options)
    return ship_classifier(network, name, data, source("test", data_root), info, destination)


def ship_classifier(
    network: Classifier,
    name: str,
    data: Images,
    test: Images,
    info: dict[str, Any],
    destination: Path | str,
) -> dict[str, Any]:
    """Writes a trained classifier, its card and the statistics of its features.

    All numbers are those of the weights as they ship, in half precision. The statistics of
    `cifar10-classifier` go to `cifar10-reference`, those of any other name to `<name>-reference`.

    Args:
        network: The classifier.
        name: Name of the model, which begins with that of its data set.
        data: Training split, of which mean and covariance are kept.
        test: Test split, for the accuracy and the kept features.
        info: What `train_classifier` returned.
        destination: Folder to write to.

    Returns:
        `info` with the test accuracy.
    """
    about = {
        "name": name,
        "network": "classifier",
        "shape": list(data.pixels.shape[1:]),
        "classes": list(data.classes),
        "data": name.partition("-")[0],
        "licence": {"data": data.licence, "weights": "Apache-2.0"},
        "steps": info["step"],
        "images": info["images"],
        "seed": OPTIONS.get(name, {}).get("seed", 0),
        "minutes": round(info["seconds"] / 60, 1),
        "trained": date.today().isoformat(),
    }
    folder = Path(destination)
    path = save(network, about, folder)
    shipped = classifier(path)
    features = embed(shipped, test)
    with torch.no_grad():
        right = shipped.outputs(features).argmax(1) == test.labels
    accuracy = right.double().mean().item()
    about |= {"metrics": {"accuracy": accuracy}, "note": "Accuracy is that of the test split."}
    save(network, about, folder)
    every = embed(shipped, data).double()
    tensors = {
        "mean": every.mean(0).float(),
        "cov": every.T.cov().float(),
        "count": torch.tensor(len(every)),
        "features": features[:TEST_FEATURES].half(),
        "labels": test.labels[:TEST_FEATURES].clone(),
    }
    file = folder / f"{name.removesuffix('-classifier')}-reference.safetensors"
    save_file(tensors, file, {"format": "pt"})
    file.chmod(0o644)
    return {**info, "accuracy": accuracy}


@torch.no_grad()
def embed(network: Classifier, data: Images, batch: int = 500) -> Tensor:
    """Features of all images, `(N, d)` in float32 on the CPU."""
    device = next(network.parameters()).device
    rows = torch.split(torch.arange(len(data)), batch)
    return torch.cat([network.features(data.batch(r)[0].to(device)).float().cpu() for r in rows])


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
