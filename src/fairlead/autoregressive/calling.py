"""How a model of transformers is called: what it takes, under which names."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

CACHES = ("cache", "past_key_values")
"""What versions of transformers call it."""


def positions(model: Any, mask: Tensor, start: int) -> dict[str, Tensor]:
    """Positions of tokens behind left padding, where the model takes them."""
    if "position_ids" not in parameters(model):
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, start:]}


def parameters(model: Any) -> frozenset[str]:
    """Names of what the forward of a model takes."""
    return _taken(type(model).forward)


@functools.cache  # asked at every token
def _taken(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def cache_name(model: Any) -> str:
    """What the model calls its cache."""
    return next((k for k in CACHES if k in parameters(model)), CACHES[-1])


def codebooks(model: Any) -> int:
    """How many tokens a model writes at once, in a delay pattern that is its own."""
    return int(getattr(getattr(model, "decoder", None), "num_codebooks", 1))


def decoder(model: Any) -> Any:
    """The configuration of what writes tokens."""
    return model.config.get_text_config(decoder=True)
