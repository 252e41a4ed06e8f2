"""Signs of too much guidance in the pixels: saturated colours and clipped values."""

from torch import Tensor

from fairlead.metrics.bootstrap import RESAMPLES, Estimate, mean_interval


def saturation(images: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean saturation of the HSV model, `(max - min) / max` over channels, 0 for black.

    Args:
        images: `(N, 3, H, W)` in [-1, 1]; beyond, they are clamped. One channel has
            saturation 0.
        resamples: Bootstrap draws over images.
        seed: Seed of the draws.

    Raises:
        ValueError: The images have another number of channels, such as latents.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"saturation: images must be (N, 3, H, W), got {tuple(images.shape)}")
    rgb = (images.detach().double().clamp(-1, 1) + 1) / 2
    high, low = rgb.amax(1), rgb.amin(1)
    share = (high - low) / high.clamp(min=1e-12)
    return mean_interval(share.flatten(1).mean(1), resamples, seed=seed)


def clipped_fraction(
    images: Tensor, tol: float = 1 / 255, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Share of values with `|x| >= 1 - tol`, at or beyond the ends of the range.

    Args:
        images: `(N, ...)` in [-1, 1].
        tol: Half a step of 8-bit images by default.
        resamples: Bootstrap draws over images.
        seed: Seed of the draws.
    """
    outside = (images.detach().abs() >= 1 - tol).double()
    return mean_interval(outside.flatten(1).mean(1), resamples, seed=seed)
