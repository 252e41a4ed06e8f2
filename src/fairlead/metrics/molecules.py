"""What generated molecules are worth: validity, uniqueness, novelty, QED and rings."""

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from safetensors.torch import load_file


@dataclass(frozen=True)
class Molecule:
    """A molecule that RDKit could read.

    Attributes:
        smiles: Its canonical SMILES.
        qed: Quantitative estimate of drug-likeness, in [0, 1].
        rings: Number of rings.
    """

    smiles: str
    qed: float
    rings: int


@lru_cache(maxsize=1)
def _rdkit() -> tuple[Any, Any]:
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import QED
    except ImportError:
        raise ImportError('molecules need RDKit: pip install "fairlead[molecules]"') from None

    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]  # what does not parse is counted, not printed
    return Chem, QED


def describe(smiles: str) -> Molecule | None:
    """What RDKit says of a molecule; `None` where it cannot read it.

    Raises:
        ImportError: RDKit is not installed.
    """
    chem, qed = _rdkit()
    try:
        found = chem.MolFromSmiles(smiles) if smiles else None
    except UnicodeEncodeError:  # half a character
        return None
    if found is None or not found.GetNumAtoms():
        return None
    try:
        value = float(qed.qed(found))
    except Exception:  # RDKit raises bare runtime errors for what it cannot describe
        return None
    return Molecule(chem.MolToSmiles(found), value, int(found.GetRingInfo().NumRings()))


@dataclass(frozen=True)
class MoleculeReport:
    """Counts and means over generated SMILES.

    Attributes:
        n: How many were generated.
        valid: How many RDKit can read.
        unique: How many distinct molecules are among them.
        novel: How many of these are not in the training data; `None` if none was given.
        qed: Mean QED of the novel molecules, or of the unique ones; `None` if there are none.
        rings: Mean number of rings of the same.
    """

    n: int
    valid: int
    unique: int
    novel: int | None
    qed: float | None
    rings: float | None


class Known:
    """Canonical SMILES by their hashes, so that novelty needs no data: `smiles in known`."""

    def __init__(self, hashes: Iterable[int]) -> None:
        self.hashes = frozenset(hashes)

    def __contains__(self, smiles: object) -> bool:
        return isinstance(smiles, str) and hashed(smiles) in self.hashes

    def __len__(self) -> int:
        return len(self.hashes)


def hashed(smiles: str) -> int:
    """64 bits of a canonical SMILES."""
    digest = hashlib.blake2b(smiles.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def known(name: str) -> Known:
    """The training molecules of a shipped data set.

    Args:
        name: `qm9`.

    Raises:
        ValueError: Unknown name.
    """
    from fairlead.models import zoo
    from fairlead.parameters import choose

    end = "-known"
    names = [p.stem.removesuffix(end) for p in zoo.WEIGHTS.glob(f"*{end}.safetensors")]
    choose("known", "name", name, names)
    tensors = load_file(zoo.WEIGHTS / f"{name}{end}.safetensors")
    return Known(tensors["hashes"].tolist())


def evaluate(smiles: Sequence[str], known: Container[str] | None = None) -> MoleculeReport:
    """Validity, uniqueness, novelty and properties of generated SMILES.

    Args:
        smiles: What was generated; strings that do not parse only count as invalid.
        known: Canonical SMILES of the training data, such as `known("qm9")`.

    Raises:
        ImportError: RDKit is not installed.

    Example:
        >>> report = evaluate(["CCO", "OCC", "C1CC1", "C(("], known=["CCO"])
        >>> report.valid, report.unique, report.novel, report.rings
        (3, 2, 1, 1.0)
    """
    found = [m for m in map(describe, smiles) if m is not None]
    unique = {m.smiles: m for m in found}
    judged = unique
    if known is not None:
        judged = {k: m for k, m in unique.items() if k not in known}
    count = len(judged)
    return MoleculeReport(
        n=len(smiles),
        valid=len(found),
        unique=len(unique),
        novel=None if known is None else count,
        qed=sum(m.qed for m in judged.values()) / count if count else None,
        rings=sum(m.rings for m in judged.values()) / count if count else None,
    )
