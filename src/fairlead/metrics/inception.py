"""FID proper: the Fréchet distance of Inception features, through torchmetrics."""

import os
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 64


def inception_fid(
    generated: Tensor,
    real: Tensor,
    weights: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
) -> float:
    """FID of images against images, with the network that the name belongs to.

    Args:
        generated: `(M, 3, H, W)` in [-1, 1].
        real: `(N, 3, H, W)` in [-1, 1]. Published numbers have N = M = 50000.
        weights: File of the network's weights, `pt_inception-2015-12-05-6726825d.pth`.
        download: Let torch-fidelity fetch the weights if no file is given. Nothing is ever
            fetched without it.

    Raises:
        ImportError: The extra is missing.
        ValueError: There are neither weights nor leave to fetch them.
        FileNotFoundError: There is no such file.

    Source:
        Heusel et al. (2017), arXiv:1706.08500.
    """
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError(
            'inception_fid needs torchmetrics and torch-fidelity: pip install "fairlead[fid]"'
        ) from error
    if weights is None and not download:
        raise ValueError(
            "inception_fid: weights must be the file of the Inception weights; or let them be "
            "fetched with download=True"
        )
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"inception_fid: no weights at {weights}")
    metric = FrechetInceptionDistance(
        feature=2048,
        normalize=False,
        feature_extractor_weights_path=None if weights is None else str(weights),
    )
    for images, is_real in ((real, True), (generated, False)):
        for part in torch.split(images, CHUNK):
            pixels = ((part.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
            metric.update(pixels, real=is_real)
    return float(metric.compute())
