"""The Gaussians of a mixture, diagonalised once so that every level of noise is cheap."""

import math

import torch
from torch import Tensor


class Components:
    """`K` Gaussians with `S_k = U_k diag(l_k) U_k^T`.

    Args:
        means: `(K, d)`, or `(K,)` on a line.
        covs: Variances as one number or `(K,)`; `(K, d)` diagonal; `(K, d, d)` full.

    Attributes:
        means: `(K, d)`, float64.
        eigenvalues: `(K, d)`, >= 0.
        basis: `(K, d, d)` eigenvectors in columns, or `None` for diagonal covariances.

    Raises:
        ValueError: Shapes do not fit, or a covariance is not symmetric or not positive.
    """

    def __init__(
        self,
        means: Tensor | list[list[float]] | list[float],
        covs: Tensor | float | list[float],
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        self.means = means[:, None] if means.ndim == 1 else means
        covs = torch.as_tensor(covs, dtype=torch.float64, device=self.means.device)
        self.eigenvalues, self.basis = _spectra(covs, *self.means.shape)
        rotated = self.means if self.basis is None else (self.basis * self.means[..., None]).sum(1)
        self._rotated_means = rotated

    def residuals(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """`y = U_k^T (x - alpha m_k)`, and the eigenvalues `v` of `alpha^2 S_k + sigma^2 I`.

        Shapes: x `(B, d)`; alpha and sigma `(1, 1)` or `(B, 1)`; y `(B, K, d)`; v
        `(1 or B, K, d)`.

        Raises:
            ValueError: An eigenvalue is zero: there is no density.
        """
        v = alpha[..., None] ** 2 * self.eigenvalues + sigma[..., None] ** 2
        if not (v > 0).all():
            raise ValueError(
                "GaussianMixture: a component is a point mass at this level and has no density; "
                "use a level with sigma > 0, or positive covariances"
            )
        turned = x[:, None]
        if self.basis is not None:
            flat = self.basis.permute(1, 0, 2).reshape(x.shape[1], -1)
            turned = (x @ flat).reshape(len(x), -1, x.shape[1])
        return turned - alpha[..., None] * self._rotated_means, v

    def unrotate(self, y: Tensor) -> Tensor:
        """`sum_k U_k y_k`, `(B, K, d)` to `(B, d)`."""
        if self.basis is None:
            return y.sum(1)
        return y.flatten(1) @ self.basis.mT.reshape(-1, y.shape[2])

    def colour(self, z: Tensor, k: Tensor) -> Tensor:
        """White noise `(n, d)` with the covariances of the components `k` `(n,)`."""
        z = self.eigenvalues[k].sqrt() * z
        return z if self.basis is None else (self.basis[k] @ z[..., None])[..., 0]

    @property
    def covariances(self) -> Tensor:
        """`(K, d, d)`."""
        if self.basis is None:
            return torch.diag_embed(self.eigenvalues)
        return (self.basis * self.eigenvalues[:, None]) @ self.basis.mT

    @property
    def compact(self) -> Tensor:
        """The covariances as `(K, d)` if they are diagonal, else `(K, d, d)`."""
        return self.eigenvalues if self.basis is None else self.covariances


def log_normal(y: Tensor, v: Tensor) -> Tensor:
    """Log density of independent coordinates `y` of variances `v`, over the last dimension."""
    return -((y**2 / v).sum(-1) + v.log().sum(-1) + y.shape[-1] * math.log(2 * math.pi)) / 2


def _spectra(covs: Tensor, k: int, d: int) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues `(K, d)` and eigenvectors `(K, d, d)`, `None` for diagonal covariances."""
    basis = None
    if covs.ndim <= 1 and (covs.ndim == 0 or len(covs) == k):
        values = covs.expand(k)[:, None].expand(k, d).clone()
    elif covs.shape == (k, d):
        values = covs.clone()
    elif covs.shape == (k, d, d):
        # far below any use, far above rounding
        if not torch.allclose(covs, covs.mT, rtol=1e-10, atol=1e-12 * covs.abs().max().item()):
            raise ValueError("GaussianMixture: covs must be symmetric")
        values, basis = torch.linalg.eigh(covs)
        # eigh leaves -1e-17 where a singular matrix has 0
        values = torch.where(values.abs() < 1e-14 * values.amax(1, keepdim=True), 0.0, values)
    else:
        raise ValueError(
            f"GaussianMixture: covs must be a number, ({k},), ({k}, {d}) or ({k}, {d}, {d}), "
            f"got {tuple(covs.shape)}"
        )
    if not (values >= 0).all():
        raise ValueError("GaussianMixture: covs must be positive")
    return values, basis
