"""Fine-tuning of a denoiser so that it fills in images of which a part is known."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairlead.guidance.recipes import tool
from fairlead.models.inpainting import Inpainter
from fairlead.training.data import Images
from fairlead.training.trainer import Recipe, edm_loss, fit


def erased(
    count: int, height: int, width: int, g: torch.Generator, sides: tuple[float, float] = (0.3, 1.0)
) -> Tensor:
    """Masks with one erased rectangle each, `(count, 1, height, width)`: 0 there, 1 elsewhere.

    Args:
        count: How many.
        height: Of the images.
        width: Of the images.
        g: Draws sides and places.
        sides: Least and largest side of a rectangle, as shares of the image's; a rectangle of
            both sides 1 leaves nothing known.

    Raises:
        ValueError: The shares are not ordered in [0, 1].
    """
    low, high = sides
    if not 0 <= low <= high <= 1:
        raise ValueError(f"erased: sides must satisfy 0 <= low <= high <= 1, got {sides}")
    mask = torch.ones(count, 1, height, width)
    draws = torch.rand(count, 4, generator=g).tolist()
    for own, (a, b, c, d) in zip(mask, draws, strict=True):
        h = math.ceil((low + a * (high - low)) * height)
        w = math.ceil((low + b * (high - low)) * width)
        y, x = int(c * (height - h + 1)), int(d * (width - w + 1))
        own[:, y : y + h, x : x + w] = 0
    return mask


@tool("inpainting_loss", ids=("S056",), kind="loss", domains=frozenset({"continuous"}))
def inpainting_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    label: Tensor,
    sigma: Tensor,
    n: Tensor,
    mask: Tensor,
) -> Tensor:
    """EDM's denoising loss of a network that is shown the part of `x0` where the mask is 1.

    The whole image counts, as the known part is also to be kept.

    Shapes: x0 and n `(B, C, H, W)`, label and sigma `(B,)`, mask `(B, 1, H, W)`; returns a scalar.

    Source:
        Nichol et al. (2021), GLIDE, arXiv:2112.10741, with the loss of arXiv:2206.00364.
    """

    def seeing(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return network(x, t, label, x0, mask)

    return edm_loss(seeing, x0, label, sigma, n)


def train_inpainter(
    network: Inpainter,
    data: Images,
    recipe: Recipe,
    folder: Path,
    *,
    sides: tuple[float, float] = (0.3, 1.0),
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Fine-tunes a network on images of which random rectangles are erased; see `fit`.

    Args:
        network: `Inpainter` of a trained network; trained in place.
        data: Images and labels; label `len(data.classes)` is null.
        recipe: Settings, of which `dropout_from` and `flip` do not count.
        folder: Holds checkpoints; a run that stopped goes on.
        sides: Sides of the rectangles; see `erased`.
        progress: Called now and then.
        device: Where to train.

    Returns:
        Steps, images seen, seconds and the running loss.

    Raises:
        ValueError: As for `fit`.
        FloatingPointError: The loss is no longer finite.
    """

    def loss(forward: Callable[..., Any], rows: Tensor, g: torch.Generator, share: float) -> Tensor:
        x0, label = data.batch(rows)
        dropped = torch.rand(len(rows), generator=g) < recipe.condition_dropout
        label = torch.where(dropped, len(data.classes), label)
        sigma = (recipe.p_mean + recipe.p_std * torch.randn(len(rows), generator=g)).exp()
        noise = torch.randn(x0.shape, generator=g)
        mask = erased(len(rows), x0.shape[2], x0.shape[3], g, sides)
        where = next(network.parameters()).device
        moved = (v.to(where) for v in (x0, label, sigma, noise, mask))
        return inpainting_loss(forward, *moved)

    return fit(network, loss, len(data), recipe, folder, progress, device=device)
