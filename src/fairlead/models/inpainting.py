"""Networks that are shown the known part of an image, to fill in the rest."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fairlead import nulls
from fairlead.denoiser import Denoiser


class Inpainter(nn.Module):
    """A network with further channels for the known part of an image and where it is known.

    The first layer takes ``C + 1`` channels more, ``known * mask`` and ``mask``, whose weights
    start at zero: so it begins as the given network, and is fine-tuned from there.

    Args:
        network: A network of images with ``config["channels"]`` and ``patch``, whose layer
            ``inputs`` takes patches as channels: ``UNet``, ``DiT``. It is copied.

    Raises:
        ValueError: It has no such layer.

    Shapes: image ``(B, C, H, W)``, time ``(B,)``, label ``(B,)``, known ``(B, C, H, W)`` and mask
    ``(B, 1, H, W)``, 1 where the image is known, to an image.

    Source:
        Nichol et al. (2021), GLIDE, arXiv:2112.10741.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        given: Any = network
        layer = getattr(network, "inputs", None)
        known = isinstance(layer, (nn.Conv2d, nn.Linear)) and hasattr(network, "patch")
        if not known or "channels" not in getattr(network, "config", {}):
            raise ValueError(
                f"Inpainter: {type(network).__name__} is none of UNet and DiT; widen its first "
                "layer by hand, and give fl.Denoiser a network that takes known and mask"
            )
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        made: Any = copy.deepcopy(network)
        made.inputs = widened(layer, (given.config["channels"] + 1) * given.patch**2)
        self.network = made
        self.config = {"inpainter": given.config}

    @property
    def attention_layers(self) -> Any:
        """Those of the network."""
        return self.network.attention_layers

    @property
    def residual_blocks(self) -> Any:
        """Those of the network."""
        return self.network.residual_blocks

    def forward(self, x: Tensor, t: Tensor, label: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        """The prediction, shaped like `x`."""
        known, mask = known.to(x), mask.to(x)
        seen = torch.cat([x, known * mask, mask.expand(len(x), 1, *x.shape[2:])], 1)
        out: Tensor = self.network(seen, t, label)
        return out


def widened(layer: nn.Conv2d | nn.Linear, extra: int) -> nn.Conv2d | nn.Linear:
    """A copy of a layer with further inputs at the end, of weight zero."""
    made = copy.deepcopy(layer)
    weight = layer.weight
    zeros = weight.new_zeros(weight.shape[0], extra, *weight.shape[2:])
    made.weight = nn.Parameter(torch.cat([weight.detach(), zeros], 1))
    if isinstance(made, nn.Conv2d):
        made.in_channels += extra
    else:
        made.in_features += extra
    return made


def inpainter(denoiser: Denoiser) -> Denoiser:
    """A denoiser of images as one that is also given ``known`` and ``mask``, to be fine-tuned.

    Both stay in the null condition, so that guidance acts on the label alone. To sample, put the
    known part back into the clean estimate as well: the sampler ``repaint(times=1,
    place='estimate')``.

    Args:
        denoiser: Of a ``UNet`` or ``DiT``, such as ``fl.load("digits")``; it stays as it is.

    Raises:
        ValueError: Its network cannot be widened.

    Example:
        >>> import torch, fairlead as fl
        >>> from fairlead.models.inpainting import inpainter
        >>> filler = inpainter(fl.load("digits"))
        >>> known, mask = torch.zeros(1, 1, 8, 8), (torch.arange(8) < 4).float().expand(1, 1, 8, 8)
        >>> out = fl.sample(
        ...     filler, {"label": [3], "known": known, "mask": mask}, guide="cfg(2)", steps=4,
        ...     sampler="repaint(times=1, place='estimate', sampler='heun')",
        ...     reference=known, masks={"known": mask},
        ... )
        >>> torch.equal(out.x * mask, known)
        True

    Source:
        Nichol et al. (2021), GLIDE, arXiv:2112.10741.
    """
    if not isinstance(denoiser.network, nn.Module):
        raise ValueError("inpainter: the denoiser's network is no module, so it has no first layer")
    time = denoiser.time_embedding
    return Denoiser(
        Inpainter(denoiser.network),
        denoiser.schedule,
        denoiser.prediction,
        {**denoiser.null, "known": nulls.kept(), "mask": nulls.kept()},
        shape=denoiser.shape,
        sigma_data=denoiser.sigma_data,
        trained=denoiser.trained,
        time_embedding=None if time is None else f"network.{time}",
        embeddings={name: f"network.{module}" for name, module in denoiser.embeddings.items()},
        choices=denoiser.choices,
        autocast=denoiser.autocast,
    )
