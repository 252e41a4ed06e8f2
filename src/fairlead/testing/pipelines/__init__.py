"""Tiny diffusers pipelines, built in memory from real classes: nothing is downloaded.

>>> from fairlead.testing.pipelines import PIPELINES, tiny_pipeline
>>> pipe = tiny_pipeline("sd")
>>> latents = PIPELINES["sd"].run(pipe, **PIPELINES["sd"].scale(4.0))
>>> tuple(latents.shape)
(1, 4, 8, 8)
"""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import torch

from fairlead.testing.pipelines.modular import modular_recipes
from fairlead.testing.pipelines.recipe import Recipe
from fairlead.testing.pipelines.transformers import transformer_recipes
from fairlead.testing.pipelines.unets import unet_recipes
from fairlead.testing.pipelines.videos import video_recipes

PIPELINES: Mapping[str, Recipe] = MappingProxyType(
    {r.name: r for r in (*unet_recipes(), *transformer_recipes(), *video_recipes())}
)
"""Every tiny pipeline by name."""

MODULAR: Mapping[str, Recipe] = MappingProxyType({r.name: r for r in modular_recipes()})
"""Every tiny modular pipeline with a guider by name."""


def built(recipes: Mapping[str, Recipe], name: str) -> Any:
    """What the recipe of that name builds, without a trace in the global random state."""
    if name not in recipes:
        near = get_close_matches(name, recipes, 1, 0.0)[0]
        raise ValueError(f"no tiny pipeline {name!r}; the nearest is {near!r}")
    with torch.random.fork_rng(devices=[]):
        return recipes[name].build()


def tiny_pipeline(name: str) -> Any:
    """A tiny pipeline of random weights, the same at every call.

    Args:
        name: A key of `PIPELINES`.

    Raises:
        ValueError: There is no pipeline of that name.
    """
    return built(PIPELINES, name)


def tiny_modular(name: str) -> Any:
    """A tiny modular pipeline of random weights, the same at every call.

    Args:
        name: A key of `MODULAR`.

    Raises:
        ValueError: There is no modular pipeline of that name.
    """
    return built(MODULAR, name)


__all__ = ["MODULAR", "PIPELINES", "Recipe", "tiny_modular", "tiny_pipeline"]
