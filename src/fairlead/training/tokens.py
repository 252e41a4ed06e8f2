"""Token sequences with conditions: QM9 molecules and the speakers of Tiny Shakespeare."""

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairlead.training.data import data_root

SMILES_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|.")
END = "<end>"
MOLECULE_LENGTH = 24
QED_CLASSES = 10
RING_CLASSES = 7
TEXT_LENGTH = 128
SPEECH_LEAST = 10_000
OTHER = "other"

LICENCES = {
    "qm9": "QM9 (Ramakrishnan et al., 2014), CC0",
    "shakespeare": "Tiny Shakespeare (Karpathy), public domain",
}


@dataclass(frozen=True)
class Sequences:
    """Token sequences of one length with their conditions.

    Attributes:
        tokens: `(N, L)`, uint8.
        conditions: By name, each `(N,)`, int64.
        vocabulary: The text of each token.
        classes: What each value of a condition means, by condition.
        licence: Where the data come from, for model cards.
    """

    tokens: Tensor
    conditions: Mapping[str, Tensor]
    vocabulary: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    licence: str

    def __len__(self) -> int:
        return len(self.tokens)


def split_smiles(smiles: str) -> list[str]:
    """The tokens of a SMILES string: atoms, bonds, branches and ring closures."""
    return SMILES_TOKEN.findall(smiles)


def qm9(
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Sequences:
    """QM9 as SMILES tokens, with QED in tenths of the data and the number of rings.

    Every twentieth molecule is the test split; what RDKit cannot read is in neither. Sequences
    end with `<end>` to their full length.

    Args:
        split: `train` or `test`.
        root: Folder with `qm9/smiles.csv`; see `training.data.data_root`.
        cache: Folder where the table of properties is kept once RDKit has made it.

    Raises:
        FileNotFoundError: There is no such file; says where it was looked for.
        ImportError: There is no table of properties, and RDKit is not installed.
    """
    file = data_root(root) / "qm9" / "smiles.csv"
    if not file.exists():
        raise FileNotFoundError(
            f"no QM9 molecules in {file.resolve()}; set FAIRLEAD_DATA or --data to a folder with "
            "qm9/smiles.csv, one column of SMILES under a header"
        )
    smiles = file.read_text().split()[1:]
    table = properties(smiles, (file.parent, *([Path(cache)] if cache else [])))
    split_up = [split_smiles(s) for s in smiles]
    vocabulary = (END, *sorted({t for tokens in split_up for t in tokens}))
    index = {t: i for i, t in enumerate(vocabulary)}
    rows = torch.zeros(len(smiles), MOLECULE_LENGTH, dtype=torch.uint8)
    for row, tokens in zip(rows, split_up, strict=True):
        row[: len(tokens)] = torch.tensor([index[t] for t in tokens], dtype=torch.uint8)
    qed, rings = table["qed"], table["rings"]
    readable = qed > 0
    keep = _split(len(smiles), split) & readable
    edges = qed_edges(qed[readable])
    conditions = {
        "qed": torch.bucketize(qed, edges, right=True)[keep],
        "rings": rings.long().clamp(max=RING_CLASSES - 1)[keep],
    }
    bounds = [float(qed[readable].min()), *edges.tolist(), float(qed.max())]
    classes = {
        "qed": tuple(f"{bounds[i]:.3f}-{bounds[i + 1]:.3f}" for i in range(QED_CLASSES)),
        "rings": (*map(str, range(RING_CLASSES - 1)), f"{RING_CLASSES - 1}+"),
    }
    return Sequences(rows[keep], conditions, vocabulary, classes, LICENCES["qm9"])


def qed_edges(qed: Tensor) -> Tensor:
    """The nine values that part QED into tenths of the data."""
    return torch.quantile(qed, torch.arange(1, QED_CLASSES) / QED_CLASSES)


def properties(smiles: Sequence[str], folders: Sequence[Path]) -> dict[str, Tensor]:
    """QED and ring count of each molecule, from the first folder that holds them, else by RDKit.

    Args:
        smiles: The molecules.
        folders: Where `properties.safetensors` is looked for; the last one that can be written
            keeps a new table.

    Returns:
        `qed` `(N,)` in float32, 0 where RDKit cannot read the molecule, and `rings` `(N,)` in
        uint8.
    """
    check = str(zlib.crc32("\n".join(smiles).encode()))
    for folder in folders:
        path = folder / "properties.safetensors"
        if path.exists():
            with safe_open(path, "pt") as f:
                if (f.metadata() or {}).get("smiles") == check:
                    return {k: f.get_tensor(k) for k in ("qed", "rings")}
    from fairlead.metrics.molecules import describe

    found = [describe(s) for s in smiles]
    table = {
        "qed": torch.tensor([0.0 if m is None else m.qed for m in found]),
        "rings": torch.tensor([0 if m is None else m.rings for m in found], dtype=torch.uint8),
    }
    for folder in reversed(folders):
        if os.access(folder, os.W_OK):
            save_file(table, folder / "properties.safetensors", {"smiles": check})
            break
    return table


def shakespeare(
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    length: int = TEXT_LENGTH,
) -> Sequences:
    """Windows of what each speaker of Tiny Shakespeare says, with the speaker.

    A speaker's turns stand one after the other, a blank line between them; windows begin where
    lines do. Who says less than 10,000 characters is `other`. The last tenth of each speaker's
    text is the test split.

    Args:
        split: `train` or `test`.
        root: Folder with `tinyshakespeare/input.txt`; see `training.data.data_root`.
        cache: Not used.
        length: Characters of a window.

    Raises:
        FileNotFoundError: There is no such file; says where it was looked for.
    """
    file = data_root(root) / "tinyshakespeare" / "input.txt"
    if not file.exists():
        raise FileNotFoundError(
            f"no Tiny Shakespeare in {file.resolve()}; set FAIRLEAD_DATA or --data to a folder "
            "with tinyshakespeare/input.txt"
        )
    text = file.read_text()
    vocabulary = tuple(sorted(set(text)))
    code = {c: i for i, c in enumerate(vocabulary)}
    turns = [turn.partition(":\n") for turn in text.strip().split("\n\n")]
    said: Counter[str] = Counter()
    for speaker, _, words in turns:
        said[speaker] += len(words) + 2
    speakers = sorted(s for s, n in said.items() if n >= SPEECH_LEAST)
    names = (*speakers, OTHER)
    rows, labels = [], []
    for label, name in enumerate(names):
        whole = "\n\n".join(w for s, _, w in turns if (s if s in speakers else OTHER) == name)
        cut = len(whole) * 9 // 10
        part = whole[:cut] if split == "train" else whole[cut:]
        codes = torch.tensor([code[c] for c in part], dtype=torch.uint8)
        starts = [m.end() for m in re.finditer(r"\n+", part) if m.end() + length <= len(part)]
        rows += [codes[i : i + length] for i in starts]
        labels += [label] * len(starts)
    return Sequences(
        torch.stack(rows),
        {"speaker": torch.tensor(labels)},
        vocabulary,
        {"speaker": names},
        LICENCES["shakespeare"],
    )


def _split(count: int, split: str) -> Tensor:
    test = torch.arange(count) % 20 == 19
    return test if split == "test" else ~test


SEQUENCES: dict[str, Callable[..., Sequences]] = {"qm9": qm9, "shakespeare": shakespeare}
