"""What samples of a known mixture missed, overdid or left: modes, branches and outliers."""

import torch
from torch import Tensor

from fairlead.exact.distribution import Distribution, Label
from fairlead.exact.mixture import GaussianMixture
from fairlead.metrics.bootstrap import RESAMPLES, Estimate, mean_interval


def group_shares(
    mixture: GaussianMixture,
    x: Tensor,
    groups: Tensor | None = None,
    label: Label = None,
) -> tuple[Tensor, Tensor]:
    """Share of samples in each group of components, and the share that is due.

    A sample belongs to the component of greatest responsibility.

    Args:
        mixture: The distribution.
        x: `(N, d)` samples.
        groups: `(K,)` group of each component, such as `Tree.branch`; default: each its own.
        label: The class of the samples, if they have one.

    Returns:
        Two `(G,)` tensors that add up to 1.
    """
    k = len(mixture.means)
    groups = torch.arange(k) if groups is None else groups
    zeros = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    best = mixture.responsibilities(x, None, label).argmax(1).cpu()
    index = mixture._index(label, len(x), mixture.means.device)
    due = mixture._log_weights[index].exp().mean(0).cpu()
    seen = zeros.index_add(0, groups[best], torch.ones(len(x), dtype=torch.float64))
    return seen / len(x), zeros.index_add(0, groups, due)


def mode_kl(shares: Tensor, due: Tensor) -> float:
    """`KL(shares || due)` in nats; infinite if a group was hit that is due nothing."""
    terms = torch.special.xlogy(shares, shares / due)
    return float(terms.nan_to_num(0.0, torch.inf).sum())


def covered(shares: Tensor, due: Tensor, least: float = 0.2) -> float:
    """Share of the groups due anything that got at least `least` of it."""
    owed = due > 0
    return float((shares[owed] >= least * due[owed]).double().mean())


def outlier_rate(
    distribution: Distribution,
    x: Tensor,
    label: int | None = None,
    *,
    quantile: float = 0.01,
    draws: int = 10000,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Share of samples less likely than all but `quantile` of true samples.

    Args:
        distribution: The truth.
        x: `(N, d)` samples.
        label: Their class.
        quantile: The rate that true samples have.
        draws: True samples that the threshold is taken from.
        resamples: Bootstrap draws.
        seed: Seed of both.
    """
    generator = torch.Generator().manual_seed(seed)
    true = distribution.log_density(distribution.sample(draws, label, generator), None, label)
    outside = distribution.log_density(x.double(), None, label) < true.quantile(quantile)
    return mean_interval(outside.double(), resamples, seed=seed)
