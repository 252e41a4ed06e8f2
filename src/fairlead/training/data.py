"""Labelled images for the reference networks, as tensors in memory."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLASSES = {
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "digits": tuple("0123456789"),
}
LICENCES = {
    "cifar10": "CIFAR-10 (Krizhevsky, 2009); its authors state no licence",
    "digits": "UCI optical digits (CC BY 4.0), through scikit-learn",
}


@dataclass(frozen=True)
class Images:
    """Images in bytes with their classes.

    Attributes:
        pixels: `(N, C, H, W)`, uint8.
        labels: `(N,)`, int64.
        classes: Name of each class.
        licence: Where the data come from, for model cards.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    licence: str

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Tensor, flip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] and labels of the rows `index`, mirrored where `flip` is true."""
        x = self.pixels[index].float() / 127.5 - 1
        if flip is not None:
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        return x, self.labels[index]


def data_root(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds data sets: `path`, else `$FAIRLEAD_DATA`, else `data`."""
    return Path(path or os.environ.get("FAIRLEAD_DATA") or "data")


def cifar10(split: str = "train", root: str | os.PathLike[str] | None = None) -> Images:
    """CIFAR-10 from Parquet files with columns `img` (encoded bytes) and `label`.

    Args:
        split: `train` or `test`.
        root: Folder with `cifar10/`; see `data_root`.

    Raises:
        FileNotFoundError: There is no such file; says where it was looked for.
    """
    import pyarrow.parquet as pq
    from PIL import Image

    folder = data_root(root) / "cifar10"
    files = sorted(folder.glob(f"**/*{split}*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"no CIFAR-10 {split} Parquet file under {folder.resolve()}; set FAIRLEAD_DATA or "
            "--data to a folder with cifar10/*.parquet in the layout of the dataset uoft-cs/cifar10"
        )
    pixels, labels = [], []
    for file in files:
        table = pq.read_table(file)
        column = "img" if "img" in table.column_names else "image"
        for row in table.column(column).to_pylist():
            image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
            pixels.append(np.asarray(image).transpose(2, 0, 1))
        labels += table.column("label").to_pylist()
    return Images(
        torch.from_numpy(np.stack(pixels)),
        torch.tensor(labels),
        CLASSES["cifar10"],
        LICENCES["cifar10"],
    )


def digits(split: str = "train", root: str | os.PathLike[str] | None = None) -> Images:
    """The 8x8 handwritten digits of scikit-learn; every sixth image is the test split.

    Args:
        split: `train` or `test`.
        root: Not used; scikit-learn carries the images.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError('digits come with scikit-learn: pip install "fairlead[train]"') from None

    data = load_digits()
    pixels = torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8))[:, None]
    test = torch.arange(len(pixels)) % 6 == 5
    keep = test if split == "test" else ~test
    return Images(
        pixels[keep],
        torch.from_numpy(data.target)[keep].long(),
        CLASSES["digits"],
        LICENCES["digits"],
    )


DATASETS: dict[str, Callable[..., Images]] = {"cifar10": cifar10, "digits": digits}
