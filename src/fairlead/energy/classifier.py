"""Energies from classifiers and from features."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fairlead.energy.base import CLEAN, Energy, Judge, pick, whole
from fairlead.schedules import Level


class Classifier(Judge):
    r"""Minus the log-probability of a class, from a classifier's logits ``f``.

    .. math:: E(x_0) = -\bigl[ \tau_1 f_y(x_0) - \log \sum_j \exp(\tau_2 f_j(x_0)) \bigr]

    ``joint = marginal = 1`` is ``-log p(y | x0)``.

    Args:
        network: ``(B, ...)`` to logits ``(B, K)``; with ``noisy`` it is called as
            ``network(x, level)``. A module is put in evaluation mode for the call.
        label: The class asked for, one for all samples or one a sample.
        joint: ``tau_1``.
        marginal: ``tau_2``; below ``joint`` the pull does not stop once the class is likely.
        softplus: Beta of a softplus that takes the place of every ReLU in a copy of the network,
            > 0, which smooths the gradient of classifiers that were not trained for guidance.
        noisy: Whether it judges noisy samples at their level.
        name: How guides call it.

    Raises:
        ValueError: The label is no class index, or ``softplus`` is not positive.

    Example:
        >>> import torch, fairlead as fl
        >>> judge = fl.energy.Classifier(lambda x0: torch.cat([x0, -x0], 1), label=1)
        >>> judge(torch.tensor([[0.0]]))
        tensor([0.6931])
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        label: int | Tensor | list[int],
        *,
        joint: float = 1.0,
        marginal: float = 1.0,
        softplus: float | None = None,
        noisy: bool = False,
        name: str = "classifier",
    ) -> None:
        self.label = whole("Classifier", label)
        if softplus is not None:
            if not softplus > 0:
                raise ValueError(f"Classifier: softplus must be positive, got {softplus}")
            if not isinstance(network, nn.Module):
                raise ValueError("Classifier: softplus needs a torch module as the network")
            network = smooth(network, softplus)
        self.network = network
        self.joint, self.marginal = float(joint), float(marginal)
        self.noisy, self.name = noisy, name

    def logits(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        """`(B, K)` in the dtype of `z`."""
        given = z
        if isinstance(self.network, nn.Module):
            if self.network.training:
                raise ValueError(
                    f"energy {self.name!r}: the classifier is in training mode, where batches "
                    "change its answer; call .eval() on it"
                )
            first = next(self.network.parameters(), None)
            given = z if first is None else z.to(first.dtype)
        out = self.network(given, level) if self.noisy else self.network(given)
        return out.to(z.dtype)

    def log_probs(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        return self.logits(z, level).log_softmax(1)

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        f = self.logits(z, level)
        return (self.marginal * f).logsumexp(1) - self.joint * pick(self.name, f, self.label)


class Ensemble(Judge):
    """Several judges as one: the mean of their class probabilities.

    Args:
        judges: At least one; all of noisy samples, or all of clean ones.
        label: The class asked for.
        name: How guides call it.

    Raises:
        ValueError: There is none, or they judge different kinds of samples.
    """

    def __init__(
        self, judges: Sequence[Judge], label: int | Tensor | list[int], *, name: str = "ensemble"
    ) -> None:
        if not judges:
            raise ValueError("Ensemble: judges are empty; give at least one")
        if len({j.noisy for j in judges}) > 1:
            raise ValueError("Ensemble: some judges judge noisy samples, some clean ones")
        self.judges, self.noisy = tuple(judges), judges[0].noisy
        self.label, self.name = whole("Ensemble", label), name

    def log_probs(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        parts = torch.stack([j.log_probs(z, level) for j in self.judges])
        return parts.logsumexp(0) - math.log(len(parts))


def smooth(network: nn.Module, beta: float) -> nn.Module:
    """A copy of a network with a softplus in place of every ReLU."""
    network = copy.deepcopy(network)
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus(beta))
    return network


class Similarity(Energy):
    r"""Distance in a feature space: minus the scaled cosine to a target embedding.

    .. math:: E(z) = -\mathrm{scale} \, \cos(\phi(z), e)

    Args:
        encoder: ``(B, ...)`` to ``(B, d)``; with ``noisy`` called as ``encoder(x, level)``, such
            as the image half of a contrastive model trained on noisy images.
        target: ``(d,)`` or ``(B, d)``: the embedding to come close to, of a text or an image.
        scale: Factor on the cosine; for contrastive models the exponential of their temperature.
        noisy: Whether it judges noisy samples at their level.
        name: How guides call it.

    Raises:
        ValueError: The target has length zero.

    Example:
        >>> import torch, fairlead as fl
        >>> e = fl.energy.Similarity(lambda x0: x0, torch.tensor([1.0, 0.0]), scale=2.0)
        >>> e(torch.tensor([[3.0, 4.0]]))
        tensor([-1.2000])
    """

    def __init__(
        self,
        encoder: Callable[..., Tensor],
        target: Tensor,
        scale: float = 1.0,
        *,
        noisy: bool = False,
        name: str = "similarity",
    ) -> None:
        length = torch.linalg.vector_norm(target, dim=-1, keepdim=True)
        if not bool((length > 0).all()):
            raise ValueError("Similarity: target must not have length zero")
        self.encoder, self.target, self.scale = encoder, target / length, float(scale)
        self.noisy, self.name = noisy, name

    def __call__(self, z: Tensor, level: Level = CLEAN) -> Tensor:
        features = self.encoder(z, level) if self.noisy else self.encoder(z)
        unit = torch.nn.functional.normalize(features, dim=1, eps=1e-12)
        cosine: Tensor = (unit * self.target.to(unit)).sum(1)
        return -self.scale * cosine.to(z.dtype)
