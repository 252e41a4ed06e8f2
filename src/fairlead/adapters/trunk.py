"""A network whose condition enters late: what lies before runs once for all branches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Features = Tensor | Sequence[Tensor]
"""What the trunk hands on, with the batch in front."""


class SharedTrunk(nn.Module):
    r"""Runs a trunk once for the rows of a batch that differ only in what enters behind it.

    The prediction is ``head(trunk(x, t, **early), x, t, **late)``. Branches of guidance that
    differ in a late condition alone share the trunk exactly, so that two branches cost one trunk
    and two heads. Rows are compared number by number, so any batch is right; a guide that moves
    the input of a branch has a trunk of its own, and so has every row where ``x`` is
    differentiated.

    Reported evaluations stay those of whole networks.

    Args:
        trunk: Called as ``trunk(x, t, **early)``; returns a tensor, or several.
        head: Called as ``head(features, x, t, **late)``.
        late: Names of the conditions that the trunk does not see; all others it does, and the
            head does not.

    Raises:
        ValueError: There is no late condition.

    Example:
        >>> import torch, fairlead as fl
        >>> def trunk(x, t):
        ...     return 2 * x
        >>> def head(features, x, t, label):
        ...     return features + label[:, None]
        >>> network = fl.adapters.SharedTrunk(trunk, head, ["label"])
        >>> d = fl.Denoiser(network, fl.schedules.VP(), "sample", {"label": 0}, shape=(2,))
        >>> fl.sample(d, {"label": 3}, guide="cfg(2)", steps=2).x.shape
        torch.Size([1, 2])

    Source:
        DiffBatt (2024), arXiv:2410.23893, whose network allows it.
    """

    def __init__(
        self, trunk: Callable[..., Features], head: Callable[..., Tensor], late: Sequence[str]
    ) -> None:
        super().__init__()
        if isinstance(late, str) or not late:
            raise ValueError(f"SharedTrunk: late must name at least one condition, got {late!r}")
        self.trunk, self.head, self.late = trunk, head, frozenset(late)

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The prediction, shaped like `x`."""
        early = {k: v for k, v in conditions.items() if k not in self.late}
        late = {k: v for k, v in conditions.items() if k in self.late}
        with torch.no_grad():
            seen = [v.reshape(len(x), -1).to(torch.float64) for v in (x, t, *early.values())]
            _, place = torch.unique(torch.cat(seen, 1), dim=0, return_inverse=True)
            size = int(place.max()) + 1
            first = torch.full((size,), len(x), device=place.device)
            rows = torch.arange(len(x), device=place.device)
            first = first.scatter_reduce(0, place, rows, "amin")
        # where x is differentiated each row keeps a trunk, and so its gradient, of its own
        if size == len(x) or x.requires_grad:
            return self.head(self.trunk(x, t, **early), x, t, **late)
        found = self.trunk(x[first], t[first], **{k: v[first] for k, v in early.items()})
        shared = found[place] if isinstance(found, Tensor) else [f[place] for f in found]
        return self.head(shared, x, t, **late)
