"""How deep two bodies lie in one another."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fairlead.energy.base import CLEAN, Energy
from fairlead.schedules import Level

Bodies = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""From samples to vertices and outward normals of one body, `(B, V, d)`, and of another."""


class Penetration(Energy):
    r"""How far the vertices of two bodies lie inside one another.

    .. math:: E = \lambda \, (L_{A \to B} + L_{B \to A}), \qquad
              L_{A \to B} = \operatorname*{mean}_{i \text{ inside } B} \sum_k
              \frac{r_{ik}^2}{r_{ik}^2 + \rho^2}, \quad r_i = v_i - v_{\mathrm{nn}(i)}

    ``nn(i)`` is the vertex of the other body nearest to ``v_i``, which lies inside where the way to
    that vertex points along its normal. Which vertices are inside, and which is nearest, counts as
    constant in the gradient; without a vertex inside the energy and its gradient are 0.

    Args:
        bodies: From samples ``(B, ...)`` to vertices and outward normals of both bodies, four
            tensors ``(B, V, d)``, the second pair may have another number of vertices.
        rho: Distance beyond which depth hardly counts more, > 0, in units of the vertices.
        weight: ``lambda``.
        name: How guides call it.

    Raises:
        ValueError: ``rho`` is not positive; the bodies have other shapes.

    Example:
        >>> import torch, fairlead as fl
        >>> side, out = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[-1.0], [1.0]]])
        >>> rods = fl.energy.Penetration(lambda z: (side, out, side + z[:, :, None], out), weight=1)
        >>> rods(torch.tensor([[0.95]])), rods(torch.tensor([[1.05]]))
        (tensor([1.0000]), tensor([0.]))

    Source:
        Lee, Saito, Nam, Sung, Kim (2024), arXiv:2403.17422.
    """

    def __init__(
        self,
        bodies: Bodies,
        rho: float = 0.05,
        weight: float = 1000.0,
        *,
        name: str = "penetration",
    ) -> None:
        if not 0 < rho < math.inf:
            raise ValueError(f"Penetration: rho must be positive, got {rho}")
        self.bodies, self.rho, self.weight, self.name = bodies, rho, weight, name

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        a, normals_a, b, normals_b = self.bodies(z)
        for vertices, normals in ((a, normals_a), (b, normals_b)):
            if vertices.ndim != 3 or vertices.shape != normals.shape:
                raise ValueError(
                    f"{self.name}: bodies must have vertices and normals of one shape (B, V, d), "
                    f"got {tuple(vertices.shape)} and {tuple(normals.shape)}"
                )
        return self.weight * (self._depth(a, b, normals_b) + self._depth(b, a, normals_a))

    def _depth(self, points: Tensor, others: Tensor, normals: Tensor) -> Tensor:
        """The mean over the points inside the other body, `(B,)`."""
        with torch.no_grad():
            index = torch.cdist(points.detach(), others.detach()).argmin(2)
        index = index[..., None].expand(*index.shape, points.shape[2])
        apart = points - others.gather(1, index)
        inside = ((-apart * normals.gather(1, index)).sum(2) > 0).to(apart.dtype)
        squared = apart.square()
        each = (squared / (squared + self.rho**2)).sum(2)
        total: Tensor = (each * inside.detach()).sum(1) / inside.sum(1).clamp(min=1)
        return total
