"""Named recipes: what the shipped models were trained with, and a function that trains them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fairlead.models.zoo import NETWORKS
from fairlead.parameters import choose
from fairlead.training.data import DATASETS
from fairlead.training.trainer import Recipe, train


@dataclass(frozen=True)
class Training:
    """A network, its data and its recipe.

    Args:
        data: Name of the data set, one of `training.data.DATASETS`.
        recipe: How to train.
        network: Name of the network, one of `models.zoo.NETWORKS`.
        config: Arguments of the network.
        ships: What `export` makes of the run: suffix of the name to checkpoint, which is
            `final` or a share among the recipe's snapshots.

    Raises:
        ValueError: Unknown data or network, or `ships` asks for a snapshot that is not taken.
    """

    data: str
    recipe: Recipe
    network: str = "unet"
    config: Mapping[str, Any] = field(default_factory=dict)
    ships: Mapping[str, float | str] = field(default_factory=lambda: {"": "final"})

    def __post_init__(self) -> None:
        choose("Training", "data", self.data, DATASETS)
        choose("Training", "network", self.network, NETWORKS)
        for checkpoint in self.ships.values():
            allowed = ("final", *map(str, self.recipe.snapshots))
            choose("Training", "ships", str(checkpoint), allowed)


RECIPES = {
    "digits": Training(
        data="digits",
        recipe=Recipe(
            minutes=math.inf,
            max_steps=1600,
            batch=64,
            lr=2e-3,
            decay_from=0.5,
            warmup=100,
            ema=0.995,
            condition_dropout=0.15,
            p_mean=-0.8,
            p_std=1.4,
            bf16=False,
            snapshots=(0.1,),
        ),
        config={
            "size": 8,
            "channels": 1,
            "classes": 10,
            "patch": 2,
            "widths": (32, 64),
            "blocks": 1,
            "attention": (0, 1),
            "heads": 4,
            "dropout": 0.05,
        },
        ships={"": "final", "-weak": 0.1},
    ),
    "cifar10": Training(
        data="cifar10",
        recipe=Recipe(
            minutes=100,
            batch=64,
            lr=6e-4,
            decay_from=0.55,
            warmup=400,
            ema=0.9995,
            condition_dropout=0.2,
            dropout_from=0.45,
            flip=True,
            compile=True,
            snapshots=(0.15, 0.45),
        ),
        config={
            "size": 32,
            "channels": 3,
            "classes": 10,
            "patch": 2,
            "widths": (64, 128, 192),
            "blocks": 1,
            "attention": (1, 2),
            "heads": 4,
            "dropout": 0.0,
        },
        ships={"": "final", "-weak": 0.15, "-nodropout": 0.45},
    ),
}


def find(recipe: str | Training) -> Training:
    """The training of a name; a `Training` is its own.

    Raises:
        ValueError: Unknown name; says the nearest.
    """
    if isinstance(recipe, Training):
        return recipe
    choose("training", "recipe", recipe, RECIPES)
    return RECIPES[recipe]


def run(
    recipe: str | Training,
    folder: Path | str,
    data_root: Path | str | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
    minutes: float | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Trains what a recipe says, or goes on where `folder` stopped.

    Ends with `final.safetensors`, the mean weights in float32, in `folder`; `export` makes
    shipped models of it.

    Args:
        recipe: A name in `RECIPES`, or a `Training`.
        folder: Where the run lives.
        data_root: Folder of the data sets; see `training.data.data_root`.
        progress: As for `train`.
        minutes: Budget in place of the recipe's.
        device: Where to train; default a GPU if there is one.

    Returns:
        Steps, images seen, seconds and the running loss.

    Raises:
        ValueError: Unknown recipe, or `folder` holds another run.
        FileNotFoundError: The data are not there.
    """
    training = find(recipe)
    settings = training.recipe if minutes is None else replace(training.recipe, minutes=minutes)
    images = DATASETS[training.data]("train", data_root)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = NETWORKS[training.network](**training.config)
        info = train(network, images, settings, Path(folder), progress, device=device)
    weights = {k: v.cpu().contiguous() for k, v in network.state_dict().items()}
    path = Path(folder) / "final.safetensors"
    save_file(weights, path.with_suffix(".tmp"), {k: str(v) for k, v in info.items()})
    path.with_suffix(".tmp").replace(path)
    return info
