"""One line from a network of another code base to a `Denoiser`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.schedules import EDM, Level, RectifiedFlow


@dataclass(frozen=True)
class SigmaTime(EDM):
    """EDM's levels for networks that take `sigma` itself as their time."""

    def network_time(self, t: Tensor) -> Tensor:
        return t


@dataclass(frozen=True)
class ForwardFlow(RectifiedFlow):
    """Straight paths for networks whose time runs from noise at 0 to data at 1."""

    def network_time(self, t: Tensor) -> Tensor:
        return self.time_scale * (1 - t)


class ForwardDenoiser(Denoiser):
    """A flow network whose time runs towards data, so that its velocity has the other sign."""

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        return 2 * x - super().predict(x, level, condition)  # x - sigma u, with u = -output


def from_k_diffusion(
    model: Callable[..., Tensor],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    null: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> Denoiser:
    r"""A denoiser from a k-diffusion model, ``model(x, sigma, **kwargs) -> x0``.

    ``x = x0 + sigma n``, and ``sigma`` comes as ``(B,)``, both in float32 (float64 if ``x`` is).

    Args:
        model: Module or callable; wrappers such as ``CompVisDenoiser`` are such models.
        sigma_min: Least noisy level; default: the model's own ``sigmas[0]`` if it has them, else
            0.002.
        sigma_max: Noisiest level; default: the model's own ``sigmas[-1]``, else 80.
        null: What null means for each keyword argument, as for ``fl.Denoiser``.
        shape: Shape of one sample.
        options: Further arguments of ``fl.Denoiser``.

    Raises:
        ValueError: The levels are out of order.

    Example:
        >>> import torch, fairlead as fl
        >>> model = lambda x, sigma: x / (1 + sigma[:, None] ** 2)  # of standard normal data
        >>> denoiser = fl.adapters.from_k_diffusion(model, shape=(3,))
        >>> fl.sample(denoiser, n=2, steps=4).x.shape
        torch.Size([2, 3])
    """
    sigmas = getattr(model, "sigmas", None)
    own = (0.002, 80.0)
    if isinstance(sigmas, Tensor) and sigmas.numel() > 1:
        own = (float(sigmas.min()), float(sigmas.max()))
    low = own[0] if sigma_min is None else sigma_min
    high = own[1] if sigma_max is None else sigma_max
    denoiser = Denoiser(model, SigmaTime(low, high), "sample", null, shape=shape, **options)
    denoiser.dtype = None  # such models bring x to their own dtype after they have scaled it
    return denoiser


def from_edm(
    network: nn.Module,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **options: Any,
) -> Denoiser:
    r"""A denoiser from an EDM or EDM2 network, ``net(x, sigma, class_labels) -> x0``.

    The network is one of the preconditioned modules, with ``img_channels``, ``img_resolution`` and
    ``label_dim``. The condition is ``class_labels``, one-hot rows ``(B, label_dim)``; null is the
    row of zeros that these networks are trained with.

    Args:
        network: The network.
        sigma_min: Least noisy level; default: the larger of the network's own and 0.002.
        sigma_max: Noisiest level; default: the smaller of the network's own and 80.
        options: Further arguments of ``fl.Denoiser``.

    Raises:
        TypeError: The network lacks ``label_dim``.

    Example:
        With an EDM network ``net`` of 10 classes::

            denoiser = fl.adapters.from_edm(net)
            fl.sample(denoiser, {"class_labels": torch.eye(10)[[3, 5]]}, guide="cfg(2)").x
    """
    dim = getattr(network, "label_dim", None)
    if not isinstance(dim, int):
        raise TypeError(
            f"from_edm: {type(network).__name__} has no label_dim; give a preconditioned EDM "
            "network, or use from_k_diffusion for any model(x, sigma, **kwargs)"
        )
    channels, side = (getattr(network, n, None) for n in ("img_channels", "img_resolution"))
    if channels and side:
        options.setdefault("shape", (channels, side, side))
    low = max(float(getattr(network, "sigma_min", 0.0)), 0.002)
    high = min(float(getattr(network, "sigma_max", math.inf)), 80.0)
    if dim:
        options.setdefault("null", {"class_labels": torch.zeros(dim)})
    low, high = (low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max)
    denoiser = Denoiser(network, SigmaTime(low, high), "sample", **options)
    denoiser.dtype = None  # they take float32 and bring it to their own dtype once it is scaled
    return denoiser


def from_flow(
    network: Callable[..., Tensor],
    *,
    noise_at: int = 1,
    time_scale: float = 1.0,
    shift: float = 1.0,
    null: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> Denoiser:
    r"""A denoiser from a flow-matching network, ``network(x, t, **kwargs) -> dx/dt``.

    The path is straight. Time is 1 at noise, ``x_t = (1 - t) x0 + t n``, or with ``noise_at=0`` it
    is 0 there, ``x_t = t x0 + (1 - t) n``; in both the network predicts the derivative of ``x_t``
    by its own time.

    Args:
        network: Module or callable.
        noise_at: The network's time at noise, 0 or 1.
        time_scale: The network takes ``time_scale t``; 1000 for many published ones.
        shift: Moves sampling grids towards noise; see ``fl.schedules.RectifiedFlow``.
        null: What null means for each keyword argument, as for ``fl.Denoiser``.
        shape: Shape of one sample.
        options: Further arguments of ``fl.Denoiser``.

    Raises:
        ValueError: ``noise_at`` is neither 0 nor 1; a parameter is out of range.

    Example:
        >>> import torch, fairlead as fl
        >>> network = lambda x, t, label: torch.zeros_like(x)
        >>> denoiser = fl.adapters.from_flow(network, noise_at=0, null={"label": 10}, shape=(3,))
        >>> fl.sample(denoiser, {"label": [1, 2]}, guide="cfg(2)", steps=4).x.shape
        torch.Size([2, 3])
    """
    if noise_at not in (0, 1):
        raise ValueError(f"from_flow: noise_at must be 0 or 1, got {noise_at}")
    if noise_at == 1:
        schedule = RectifiedFlow(shift=shift, time_scale=time_scale)
        return Denoiser(network, schedule, "flow_prediction", null, shape=shape, **options)
    schedule = ForwardFlow(shift=shift, time_scale=time_scale)
    return ForwardDenoiser(network, schedule, "flow_prediction", null, shape=shape, **options)
