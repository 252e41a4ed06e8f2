"""A network with a side network, such as a ControlNet, that runs where it is asked for alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Residuals = Sequence[Tensor]
"""What the side network adds to the layers of the other, one tensor `(B, ...)` a layer."""


class SideNetwork(nn.Module):
    r"""Adds the residuals of a side network to another, for the rows that show its condition.

    With ``r_i`` the residuals of ``side(x, t, picture, **rest)`` and ``k_i`` their scales the
    prediction is ``network(x, t, [k_i r_i], **rest)``; rows without get residuals of 0, which
    is the network without its side, and the side is not called for them. Whether a row shows the
    picture is a condition of its own, ``switch``, which the null of the picture turns off:

        >>> from fairlead import nulls
        >>> null = {"text": nulls.zeros(), "pose": nulls.hidden("pose_on")}

    Then ``fairlead.recipes.control("text", "pose", w)`` is CFG beside a control that stays, and
    mode ``guess`` hides it with the text, at one pass of the side network in place of two. There
    ``guess_scales(n)`` for ``scales`` fades the ``n`` residuals from 0.1 to 1 at the last, as
    ControlNet does unless its side network pools globally.

    Args:
        network: Called as ``network(x, t, residuals, **rest)``; ``residuals`` is ``None`` where no
            row shows the picture.
        side: Called as ``side(x, t, picture, **rest)`` on the rows that do.
        picture: Name of the condition that the side network takes.
        switch: Name of the condition, 1 or 0, that says whether a row shows it; default: the
            picture's name and ``_on``.
        scales: Factor of all residuals, or one for each.

    Raises:
        ValueError: There are not as many scales as residuals (at the first call).

    Example:
        >>> import torch, fairlead as fl
        >>> def network(x, t, residuals, text):
        ...     return 0 * x if residuals is None else residuals[0]
        >>> def side(x, t, pose, text):
        ...     return [pose]
        >>> both = fl.adapters.SideNetwork(network, side, "pose")
        >>> d = fl.Denoiser(both, fl.schedules.VP(), "sample", null, shape=(1,))
        >>> given = {"text": torch.ones(2, 1), "pose": torch.full((2, 1), 5.0), "pose_on": [1, 1]}
        >>> guide = fl.recipes.control("text", "pose", 3.0, "guess")
        >>> fl.sample(d, given, guide=guide, steps=2).x.flatten()
        tensor([15., 15.])

    Source:
        Zhang, Rao, Agrawala (2023), arXiv:2302.05543.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        side: Callable[..., Residuals],
        picture: str,
        *,
        switch: str = "",
        scales: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.picture, self.switch = picture, switch or f"{picture}_on"
        self.scales = scales

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The prediction, shaped like `x`."""
        rest = {k: v for k, v in conditions.items() if k not in (self.picture, self.switch)}
        on = conditions[self.switch].reshape(len(x), -1)[:, 0] != 0
        rows = on.nonzero().flatten()
        if not len(rows):
            return self.network(x, t, None, **rest)
        picture = conditions[self.picture]
        if len(rows) == len(x):
            found = self._scaled(self.side(x, t, picture, **rest))
        else:
            part = {k: v[rows] for k, v in rest.items()}
            some = self._scaled(self.side(x[rows], t[rows], picture[rows], **part))
            found = [_among(rows, r, len(x)) for r in some]
        return self.network(x, t, found, **rest)

    def _scaled(self, residuals: Residuals) -> list[Tensor]:
        if isinstance(self.scales, (int, float)):
            return [r if self.scales == 1 else self.scales * r for r in residuals]
        if len(self.scales) != len(residuals):
            raise ValueError(
                f"SideNetwork: scales must be one number, or {len(residuals)}, one for each "
                f"residual; got {len(self.scales)}"
            )
        return [k * r for k, r in zip(self.scales, residuals, strict=True)]


def _among(rows: Tensor, values: Tensor, size: int) -> Tensor:
    """Values at some rows, and zeros at the others."""
    zeros = torch.zeros(size, *values.shape[1:], dtype=values.dtype, device=values.device)
    return zeros.index_copy(0, rows, values)
