"""From latents to pixels, for energies that judge pictures."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Decode = Callable[[Tensor], Tensor]
"""From clean latents as the network is given them to what is judged, differentiable."""

Grid = tuple[int, ...] | None
"""Height and width in patches, of latents that are a sequence of them."""

Decoder = Callable[[Tensor, Grid], Tensor]
"""The same, given the grid too."""

UNPACK = ("latents", "height", "width", "vae_scale_factor")
"""What `_unpack_latents` takes where latents are a sequence of 2 by 2 patches of a picture."""


class VAE:
    """The decoder of a pipeline: latents as its network is given them to pixels in [-1, 1].

    Args:
        pipe: The pipeline.

    Raises:
        ValueError: It has none whose scales are known.
    """

    def __init__(self, pipe: Any) -> None:
        vae: Any = getattr(pipe, "vae", None)
        config = getattr(vae, "config", {})
        self.pipe: Any = pipe
        self.vae: Any = vae
        self.mean, self.std = _statistics(config)
        self.unpack = getattr(pipe, "_unpack_latents", None)
        packs = self.unpack is not None
        known = not packs or tuple(inspect.signature(self.unpack).parameters) == UNPACK  # type: ignore[arg-type]
        audio = getattr(pipe, "vocoder", None) is not None or "audio" in type(pipe).__name__.lower()
        turned = type(pipe).__name__.startswith("CogVideoX")  # frames before channels
        if not hasattr(vae, "decode") or self.std is None or not known or audio or turned:
            raise ValueError(
                f"steer: decode='vae' is not known for {type(pipe).__name__}, whose vae is "
                f"{type(vae).__name__}; give a function from its clean latents to what the energy "
                "judges: fl.steer(..., decode=function)"
            )

    def __call__(self, z: Tensor, grid: Grid = None) -> Tensor:
        """Pixels `(B, 3, H, W)`, or `(B, 3, F, H, W)` of a video.

        Args:
            z: Clean latents.
            grid: The grid of their patches.
        """
        if self.unpack is not None and z.ndim == 3:
            if grid is None:
                raise ValueError(
                    "steer: the grid of the patches is not known; give decode= as a function"
                )
            factor = self.pipe.vae_scale_factor
            height, width = (2 * factor * n for n in grid[-2:])
            z = self.unpack(z, height, width, factor)
        std, mean = (
            v if not isinstance(v, Tensor) else v.to(z).reshape(1, -1, *[1] * (z.ndim - 2))
            for v in (self.std, self.mean)
        )
        made: Tensor = self.vae.decode((z * std + mean).to(self.vae.dtype), return_dict=False)[0]
        if made.ndim == 5 and made.shape[2] == 1:
            made = made[:, :, 0]  # a picture from an autoencoder of videos
        return made.to(z.dtype)


def _statistics(config: Any) -> tuple[Any, Any]:
    """Mean and deviation by which latents were normalised; `None` where nothing says."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        factor = config.get("scaling_factor") or 1.0
        return torch.tensor(mean), torch.tensor(std) / factor
    factor = config.get("scaling_factor")
    return config.get("shift_factor") or 0.0, None if not factor else 1 / factor


def decoder(pipe: Any, decode: Decode | Literal["vae"] | None) -> Decoder | None:
    """What `fl.steer(decode=...)` says.

    Raises:
        ValueError: It is neither `vae` nor a function, or the pipeline's decoder is not known.
    """
    if decode is None:
        return None
    if decode == "vae":
        return VAE(pipe)
    if not callable(decode):
        raise ValueError(
            "steer: decode must be 'vae', a function from clean latents to what the energy "
            f"judges, or None, got {decode!r}"
        )
    return lambda z, grid: decode(z)
