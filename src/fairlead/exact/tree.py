"""Two fractal trees of Gaussians, the toy distribution of autoguidance."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.exact.mixture import GaussianMixture

SCALE = np.array([1.3136, 1.3844])
ORIGIN = np.array([0.0030, 0.0325])
PER_BRANCH = 8


class Tree(NamedTuple):
    """Two trees, one a class.

    Attributes:
        mixture: The distribution, in the plane.
        branch: `(K,)`, the branch of each component, counted from 0 through both trees.
        depth: `(K,)`, the depth of each component's branch, 0 at the trunk.
    """

    mixture: GaussianMixture
    branch: Tensor
    depth: Tensor


def fractal_tree(depth: int = 6, seed: int = 2) -> Tree:
    r"""Classes 0 and 1 grow from one point in opposite directions, `pi/4` and `5 pi/4`.

    A branch of depth `j` from `p` in direction `d` at angle `a` has length
    `l = 0.292 * 0.8^j (1 + 0.2 n)` and carries 8 Gaussians at fractions `f` from 0.07 to 0.93,
    of weight proportional to `l / 2^j`:

    .. math::
        m = (p + l f d) \odot s, \qquad
        S = [d d^T + \rho^2 (I - d d^T)] \odot (0.06\, l)^2 s s^T, \qquad
        \rho = 0.2 \cdot 0.8^j / l ,

    with `s = (1.3136, 1.3844)`; its two children leave its end at `a +- 0.7^j (1 + 0.2 n)`.
    With the defaults: 2 x 1016 Gaussians, mean 0 and standard deviation 0.5 on each axis.

    Args:
        depth: Depth of the leaves, >= 0; a tree has `2^(depth + 1) - 1` branches.
        seed: Seed of the lengths and angles.

    Raises:
        ValueError: `depth` is negative.

    Source:
        Karras et al. (2024), arXiv:2406.02507, figure 2; numbers as in its published toy.
    """
    if depth < 0:
        raise ValueError(f"fractal_tree: depth must be at least 0, got {depth}")
    draw = np.random.RandomState(seed).randn
    means, covs, weights, where = [], [], [], []

    def grow(start: np.ndarray, angle: float, level: int, label: int, branch: int) -> int:
        """Adds a branch and all above it; returns the number of the next free branch."""
        direction = np.array([math.cos(angle), math.sin(angle)])
        length = 0.292 * 0.8**level * (1 + 0.2 * draw())
        along = np.outer(direction, direction)
        shape = along + (0.2 * 0.8**level / length) ** 2 * (np.eye(2) - along)
        cov = shape * np.outer(SCALE, SCALE) * (0.06 * length) ** 2
        for fraction in np.linspace(0.07, 0.93, PER_BRANCH):
            means.append((start + length * fraction * direction) * SCALE)
            covs.append(cov)
            weights.append(length / 2**level)
            where.append((label, branch, level))
        branch += 1
        for side in (1, -1):
            # leaves draw as well: the published numbers count on the generator's state
            turn = side * 0.7**level * (1 + 0.2 * draw())
            if level < depth:
                branch = grow(start + length * direction, angle + turn, level + 1, label, branch)
        return branch

    first = grow(ORIGIN, math.pi / 4, 0, 0, 0)
    grow(ORIGIN, 5 * math.pi / 4, 0, 1, first)
    label, branch, level = torch.tensor(where).T
    mixture = GaussianMixture(
        torch.from_numpy(np.array(means)),
        torch.from_numpy(np.array(covs)),
        torch.from_numpy(np.array(weights)),
        label,
    )
    return Tree(mixture, branch, level)
