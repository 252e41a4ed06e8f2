"""Diversity without a reference: distances within classes and the Vendi score."""

import math

import torch
from torch import Tensor

from fairlead.metrics.bootstrap import RESAMPLES, Estimate, counts, interval, pair_means


def class_diversity(
    features: Tensor, labels: Tensor, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean distance of two different samples of a class, averaged over classes.

    In units of the features. Classes with fewer than two samples do not count.

    Args:
        features: `(N, d)`.
        labels: `(N,)`.
        resamples: Bootstrap draws, within each class.
        seed: Seed of the draws.

    Raises:
        ValueError: No class has two samples.
    """
    features = features.detach().double().cpu()
    values, draws = [], []
    for c in torch.unique(labels).tolist():
        own = features[labels.cpu() == c]
        n = len(own)
        if n < 2:
            continue
        apart = torch.cdist(own, own)
        values.append(pair_means(apart, torch.ones(1, n, dtype=torch.float64)))
        weights = counts(n, resamples, seed + c)
        # one row n times, of probability n^(1-n), holds no pair
        draws.append(pair_means(apart, weights).nan_to_num(0.0))
    if not values:
        raise ValueError("class_diversity: labels must give a class at least two samples")
    return interval(torch.cat(values).mean().item(), torch.stack(draws).mean(0))


def vendi_score(features: Tensor, q: float = 1.0, bandwidth: float | None = None) -> float:
    r"""Effective number of different samples, from 1 to N.

    With `l` the eigenvalues of `K/N`, `K` a kernel with ones on its diagonal:

    .. math:: \exp\Big(\frac{\log \sum l^q}{1 - q}\Big), \quad q = 1: \exp(-\sum l \log l),
        \quad q = \infty: 1 / \max l .

    Args:
        features: `(N, d)`, N >= 1.
        q: Order, > 0; larger looks at common modes only.
        bandwidth: `h` of `exp(-|a - b|^2 / (2 h^2))`, in units of the features; default: the
            cosine kernel, at most `d` (use a bandwidth on low-dimensional toys).

    Raises:
        ValueError: `q` or `bandwidth` is not positive, or there are no samples.

    Source:
        Friedman & Dieng (2023), arXiv:2210.02410; orders: arXiv:2310.12952.
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(f"vendi_score: features must be (N, d), got {tuple(features.shape)}")
    if not q > 0:
        raise ValueError(f"vendi_score: q must be positive, got {q}")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"vendi_score: bandwidth must be positive, got {bandwidth}")
    f = features.detach().double().cpu()
    n, d = f.shape
    if bandwidth is None:
        f = torch.nn.functional.normalize(f, dim=1)
        kernel = f.T @ f if n > d else f @ f.T  # the same eigenvalues but for zeros
    else:
        kernel = torch.exp(-(torch.cdist(f, f) ** 2) / (2 * bandwidth**2))
    # zeros come out as +-1e-17, which a small power would count
    eigenvalues = torch.linalg.eigvalsh(kernel / n)
    eigenvalues = torch.where(eigenvalues > 1e-14 * n, eigenvalues, 0.0)
    if q == 1:
        return math.exp(-torch.special.xlogy(eigenvalues, eigenvalues).sum().item())
    if math.isinf(q):
        return 1 / eigenvalues.max().item()
    return math.exp((eigenvalues[eigenvalues > 0] ** q).sum().log().item() / (1 - q))
