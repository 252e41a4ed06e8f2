"""Fréchet distance of feature sets. Named FID only for one network: see `inception`."""

import torch
from torch import Tensor

from fairlead.metrics.bootstrap import Estimate, counts, interval


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(d,)` and covariance `(d, d)` (divisor `N - 1`) of `(N, d)` features, in float64.

    Raises:
        ValueError: There are fewer than two rows.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"moments: features must be (N, d), N >= 2, got {tuple(features.shape)}")
    f = features.detach().double().cpu()
    mean = f.mean(0)
    return mean, (f - mean).T @ (f - mean) / (len(f) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    r"""Squared 2-Wasserstein distance of two Gaussians.

    .. math:: |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2})

    By symmetric eigenvalues, so singular covariances are safe. In units of the features
    squared; biased upward for few samples, so compare at equal N.

    Args:
        mean1: `(d,)`.
        cov1: `(d, d)`, symmetric and not negative.
        mean2: `(d,)`.
        cov2: `(d, d)`.

    Raises:
        ValueError: The shapes differ.

    Source:
        Heusel et al. (2017), arXiv:1706.08500; Dowson & Landau (1982).
    """
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape:
        raise ValueError(
            f"frechet_distance: moments must have equal shapes, got {tuple(mean1.shape)}, "
            f"{tuple(cov1.shape)} and {tuple(mean2.shape)}, {tuple(cov2.shape)}"
        )
    m1, s1, m2, s2 = (t.detach().double().cpu() for t in (mean1, cov1, mean2, cov2))
    root = _root(s1)
    return _distance(m1 - m2, s1, s2, root @ s2 @ root)


def frechet_from_features(
    features: Tensor, mean: Tensor, cov: Tensor, *, resamples: int = 50, seed: int = 0
) -> Estimate:
    """Fréchet distance of `(N, d)` features from reference moments, with its interval.

    The interval is over the generated features, centred on the value.

    Raises:
        ValueError: The features do not fit the moments.
    """
    f = features.detach().double().cpu()
    m, s = mean.detach().double().cpu(), cov.detach().double().cpu()
    value = frechet_distance(*moments(f), m, s)
    root = _root(s)
    turned = f @ root
    n = len(f)
    draws = []
    for weight in counts(n, resamples, seed):
        share = weight / n
        centre = share @ f
        # rows scaled so that F^T F is the resampled covariance; of F F^T and F^T F take the
        # smaller, their eigenvalues agree
        scale = (weight / (n - 1)).sqrt()[:, None]
        rotated = scale * (turned - centre @ root)
        trace = (scale * (f - centre)).square().sum()
        inner = rotated.T @ rotated if n >= len(m) else rotated @ rotated.T
        draws.append((centre - m).square().sum() + trace + s.trace() - 2 * _root_trace(inner))
    return interval(value, torch.stack(draws), centred=True)


def frechet_infinity(
    features: Tensor, mean: Tensor, cov: Tensor, *, sizes: int = 15, seed: int = 0
) -> float:
    """Fréchet distance without the bias of few samples: extrapolated to infinite N.

    A line in `1/N` through `sizes` random subsets, of `min(5000, N/10)` to N rows.

    Raises:
        ValueError: There are fewer than 20 rows.

    Source:
        Chong & Forsyth (2020), arXiv:1911.07023.
    """
    n = len(features)
    if n < 20:
        raise ValueError(f"frechet_infinity: features must have at least 20 rows, got {n}")
    order = torch.Generator().manual_seed(seed)
    counted = torch.linspace(min(5000, n // 10), n, sizes).long().tolist()
    values = [
        frechet_distance(*moments(features[torch.randperm(n, generator=order)[:k]]), mean, cov)
        for k in counted
    ]
    inverse = torch.tensor([1 / k for k in counted], dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], 1)
    line = torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64)[:, None])
    return float(line.solution[0])


def _distance(gap: Tensor, s1: Tensor, s2: Tensor, product: Tensor) -> float:
    total = gap.square().sum() + s1.trace() + s2.trace() - 2 * _root_trace(product)
    return float(total)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _root_trace(matrix: Tensor) -> Tensor:
    symmetric = (matrix + matrix.T) / 2
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values.clamp(min=0).sqrt().sum()
