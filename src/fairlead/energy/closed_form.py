"""A judge from a few labelled examples, in closed form and aware of the noise level."""

import math
from typing import Literal

import torch
from torch import Tensor

from fairlead.energy.base import CLEAN, Judge, whole
from fairlead.parameters import choose
from fairlead.schedules import Level

STAY = 0.99
"""Share of a label that comes from the neighbours when labels are spread."""


class ClosedFormJudge(Judge):
    r"""Gaussian classes of one shared covariance: a classifier at every level of noise.

    If ``x0`` of class ``y`` is normal with mean ``mu_y`` and the shared covariance ``S``, then
    ``x_t`` is normal with mean ``alpha mu_y`` and covariance ``C_t = alpha^2 S + sigma^2 I``. So a
    judge that is fitted on clean examples judges noisy samples too, without training on noise and
    without a network call. One eigendecomposition serves all levels, and the gradient is

    .. math:: \nabla_x \log p(y \mid x)
              = \alpha \, C_t^{-1} \Bigl( \mu_y - \sum_k p_k \, \mu_k \Bigr) .

    On mixtures of one Gaussian a class with a shared covariance it is the exact classifier, and
    ``fl.ClassifierGuidance(judge, w)`` on the unconditional model is CFG at ``w``. In pixels of
    natural images such discriminants are weak.

    Args:
        means: ``(K, d)`` class means.
        values: ``(r,)`` eigenvalues of the shared covariance along ``basis``.
        basis: ``(d, r)`` orthonormal columns; ``None`` for the axes themselves.
        rest: Variance in the directions that ``basis`` leaves out.
        prior: ``(K,)`` class probabilities.
        label: The class asked for, one for all samples or one a sample.
        name: How guides call it.

    Example:
        >>> import torch, fairlead as fl
        >>> x = torch.tensor([[-1.0], [-3.0], [1.0], [3.0]])
        >>> judge = fl.energy.ClosedFormJudge.fit(x, [0, 0, 1, 1], shrinkage=0.0, label=1)
        >>> judge(torch.zeros(1, 1)).item()  # halfway
        0.6931471824645996
    """

    noisy = True

    def __init__(
        self,
        means: Tensor,
        values: Tensor,
        basis: Tensor | None,
        rest: float,
        prior: Tensor,
        label: int | Tensor | list[int] = 0,
        *,
        name: str = "closed_form",
    ) -> None:
        self.means, self.values, self.basis = means.double(), values.double(), basis
        self.rest, self.prior = float(rest), prior.double()
        self.label, self.name = whole("ClosedFormJudge", label), name

    @classmethod
    def fit(
        cls,
        x: Tensor,
        labels: Tensor | list[int],
        *,
        shrinkage: float | Literal["auto"] = "auto",
        covariance: Literal["full", "diagonal"] = "full",
        prior: Literal["equal", "observed"] = "equal",
        unlabelled: Tensor | None = None,
        neighbours: int = 7,
        label: int | Tensor | list[int] = 0,
        name: str = "closed_form",
    ) -> "ClosedFormJudge":
        r"""From labelled clean examples.

        The shared covariance is that of the examples around their class means, shrunk towards a
        multiple of the identity, ``(1 - s) S + s (tr S / d) I``. With fewer examples than
        dimensions only their span is decomposed.

        Args:
            x: ``(n, ...)`` clean examples.
            labels: ``(n,)`` classes from 0; each has an example.
            shrinkage: ``s`` in [0, 1], or ``auto`` for the value of Ledoit and Wolf.
            covariance: ``full``, or ``diagonal`` (naive Bayes).
            prior: Class probabilities: ``equal``, or as ``observed``.
            unlabelled: Further clean samples ``(m, ...)``: labels are first spread over them
                along a graph of nearest neighbours.
            neighbours: Of that graph.
            label: The class asked for.
            name: How guides call it.

        Raises:
            ValueError: Labels do not fit the examples, a class has none, or nothing varies.
        """
        choose("ClosedFormJudge", "covariance", covariance, ("full", "diagonal"))
        choose("ClosedFormJudge", "prior", prior, ("equal", "observed"))
        flat = x.flatten(1).double()
        y = torch.as_tensor(labels).long()
        if y.shape != (len(flat),) or len(flat) < 2:
            raise ValueError(
                f"ClosedFormJudge: labels must be ({len(flat)},), one an example of at least two, "
                f"got {tuple(y.shape)}"
            )
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("ClosedFormJudge: examples must be finite")
        classes = int(y.max()) + 1
        counts = torch.bincount(y.clamp(min=0), minlength=classes)
        if bool((y < 0).any()) or not bool((counts > 0).all()):
            raise ValueError(
                f"ClosedFormJudge: labels must fill 0..{classes - 1}; classes without examples: "
                f"{(counts == 0).nonzero().flatten().tolist()}"
            )
        if unlabelled is not None:
            flat, y = spread(flat, y, unlabelled.flatten(1).double(), neighbours)
            counts = torch.bincount(y, minlength=classes)
        means = torch.zeros(classes, flat.shape[1], dtype=torch.float64).index_add(0, y, flat)
        means = means / counts[:, None]
        apart = flat - means[y]
        degrees = max(len(flat) - classes, 1)
        share = _shrinkage(apart, shrinkage)
        scale = apart.square().sum().item() / degrees / apart.shape[1]
        if not scale > 0:
            raise ValueError(
                "ClosedFormJudge: the examples do not vary within their classes; give several a "
                "class"
            )
        weights = counts / counts.sum() if prior == "observed" else torch.ones(classes) / classes
        if covariance == "diagonal":
            values = (1 - share) * apart.square().sum(0) / degrees + share * scale
            return cls(means, values, None, 0.0, weights, label, name=name)
        _, singular, vt = torch.linalg.svd(apart / degrees**0.5, full_matrices=False)
        values = (1 - share) * singular**2 + share * scale
        return cls(means, values, vt.mT, share * scale, weights, label, name=name)

    def whiten(self, z: Tensor, level: Level) -> Tensor:
        """`C_t^{-1/2} z` up to a rotation and what all classes share, `(B, r)` or more."""
        alpha, sigma = level.alpha, level.sigma
        width = (alpha**2 * self.values + sigma**2).to(z)
        if self.basis is None:
            return z / width.sqrt()
        basis = self.basis.to(z)
        along = z @ basis
        parts = [along / width.sqrt()]
        if basis.shape[0] > basis.shape[1]:
            rest = alpha**2 * self.rest + sigma**2
            if rest > 0:  # else what lies outside the span has no density
                parts.append((z - along @ basis.mT) / math.sqrt(rest))
        return torch.cat(parts, 1)

    def log_probs(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        flat = z.flatten(1).double()
        if flat.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"energy {self.name!r}: was fitted on {self.means.shape[1]} numbers a sample, got "
                f"{flat.shape[1]}"
            )
        seen = self.whiten(flat, level)
        centres = self.whiten(level.alpha * self.means.to(flat), level)
        # the squared length of x is that of all classes, so it is left out
        logits = seen @ centres.mT - centres.square().sum(1) / 2 + self.prior.to(flat).log()
        return logits.log_softmax(1).to(z.dtype)


def _shrinkage(apart: Tensor, shrinkage: float | str) -> float:
    """The share of the identity: given, or that of Ledoit and Wolf (2004)."""
    if shrinkage == "auto":
        n, d = apart.shape
        # the same squares as the covariance's, from the smaller of the two matrices
        gram = (apart @ apart.mT if n < d else apart.mT @ apart) / n
        trace = gram.diagonal().sum()
        square = gram.square().sum()
        spread = square - trace**2 / d
        fourth = (apart.square().sum(1) ** 2).sum() / n
        noise = (fourth - square) / n
        if not bool(spread > 0):
            return 1.0
        return float((noise / spread).clamp(0, 1))
    share = float(shrinkage)
    if not 0 <= share <= 1:
        raise ValueError(f"ClosedFormJudge: shrinkage must be 'auto' or in [0, 1], got {share}")
    return share


def spread(x: Tensor, y: Tensor, more: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Examples and labels after spreading them over unlabelled samples.

    Args:
        x: `(n, d)` labelled examples.
        y: `(n,)` their classes.
        more: `(m, d)` unlabelled samples.
        neighbours: Of the graph along which labels spread.

    Returns:
        Examples and classes of all that the graph connects to an example.

    Source:
        Zhou, Bousquet, Lal, Weston, Schölkopf (2004), Learning with Local and Global Consistency.
    """
    joint = torch.cat([x, more])
    apart = torch.cdist(joint, joint)
    near, index = apart.topk(min(neighbours + 1, len(joint)), largest=False)
    width = near[:, 1:].mean().clamp(min=1e-12)
    weights = torch.zeros_like(apart).scatter(1, index, torch.exp(-((near / width) ** 2)))
    weights = torch.maximum(weights, weights.mT).fill_diagonal_(0)
    degree = weights.sum(1).clamp(min=1e-12).sqrt()
    graph = weights / degree[:, None] / degree
    given = torch.zeros(len(joint), int(y.max()) + 1, dtype=joint.dtype)
    given[torch.arange(len(x)), y] = 1
    shares = torch.linalg.solve(torch.eye(len(joint)).to(joint) - STAY * graph, given)
    spread_to = shares.argmax(1)
    spread_to[: len(x)] = y
    reached = shares.amax(1) > 0  # what no example is connected to stays unlabelled
    return joint[reached], spread_to[reached]
