"""Files that are whole or absent, and places known to be writable before work starts."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

STATE = "samples/settings.json"


def require_writable(path: Path, *, folder: bool) -> None:
    """Makes the folder at `path`, or that of the file `path`, and tries to write there.

    Raises:
        ValueError: It cannot be written; says why.
    """
    if not folder and path.is_dir():
        raise ValueError(f"output: {path} is a folder, name a file in it")
    where = path if folder else path.parent
    try:
        where.mkdir(parents=True, exist_ok=True)
        probe = where / f".fairlead-{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"output: cannot write to {path}: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Writes text so that a kill leaves the old file or the new one."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text)
    draft.replace(path)


def to_json(value: Any) -> str:
    """JSON text; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_same(folder: Path, settings: dict[str, Any]) -> None:
    """Keeps what every sample of a study's folder depends on, or compares it with what was kept.

    Args:
        folder: Folder of the study.
        settings: Plain JSON values by name.

    Raises:
        ValueError: The folder holds samples made with other settings; names the first that
            differs.
    """
    manifest = folder / STATE
    manifest.parent.mkdir(parents=True, exist_ok=True)
    if not manifest.exists():
        write_text(manifest, to_json(settings) + "\n")
        return
    try:
        kept = json.loads(manifest.read_text())
    except ValueError:
        raise ValueError(f"compare: {manifest} is no JSON; name another folder") from None
    for key, value in settings.items():
        if kept.get(key) != value:
            raise ValueError(
                f"compare: {folder} holds samples made with {key} = {kept.get(key)}, not "
                f"{value}; name another folder, or the same {key} to continue"
            )


class Samples:
    """Samples on disk, in chunks by guide; a chunk is one safetensors file, whole or absent.

    Sample `i` depends on the settings and on `i` alone, so chunks of any size fit together, and
    more samples or more guides can be added later.

    Args:
        folder: Folder of the study; the chunks lie in `samples/`.
        settings: What every sample in it depends on, besides guide and index; plain JSON values.
        shape: Shape of one sample.

    Raises:
        ValueError: The folder holds samples made with other settings; names the first that
            differs.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.folder = folder
        self.shape = shape
        require_same(folder, settings)

    def place(self, guide: str) -> Path:
        """The folder of a guide's chunks; its name is short for any guide."""
        return self.folder / "samples" / hashlib.sha256(guide.encode()).hexdigest()[:12]

    def missing(self, guide: str, n: int, chunk: int) -> list[range]:
        """The indices below `n` that have no sample yet, in runs of at most `chunk`.

        A damaged file counts as absent and is deleted.
        """
        there: set[int] = set()
        for rows, file in self._chunks(guide):
            if self._whole(rows, file):
                there.update(rows)
            else:
                file.unlink()
        absent = [i for i in range(n) if i not in there]
        runs: list[range] = []
        for i in absent:
            if runs and runs[-1].stop == i and len(runs[-1]) < chunk:
                runs[-1] = range(runs[-1].start, i + 1)
            else:
                runs.append(range(i, i + 1))
        return runs

    def save(self, guide: str, rows: range, x: Tensor, nfe: Tensor, seconds: float) -> None:
        """Keeps the samples `rows` with their evaluations `(B,)` and the seconds they took."""
        folder = self.place(guide)
        folder.mkdir(exist_ok=True)
        write_text(folder / "guide.txt", guide + "\n")
        file = folder / f"{rows.start:06d}-{rows.stop:06d}.safetensors"
        draft = file.with_suffix(".tmp")
        each = torch.full((len(rows),), seconds / len(rows), dtype=torch.float64)
        tensors = {"x": x.cpu().contiguous(), "nfe": nfe.cpu().contiguous(), "seconds": each}
        save_file(tensors, draft, {"guide": guide})
        draft.replace(file)

    def load(self, guide: str, n: int) -> dict[str, Tensor]:
        """The first `n` samples: `x` `(n, ...)`, `nfe` `(n,)`, `seconds` `(n,)`."""
        parts: dict[str, list[Tensor]] = {"x": [], "nfe": [], "seconds": []}
        for rows, file in self._chunks(guide):
            with safe_open(file, "pt") as f:
                for key, found in parts.items():
                    found.append(f.get_tensor(key)[: max(0, n - rows.start)])
        return {key: torch.cat(found) for key, found in parts.items()}

    @staticmethod
    def count(folder: Path) -> int:
        """How many samples a study's folder holds, of all guides."""
        spans = [f.stem.split("-") for f in (folder / "samples").glob("*/*-*.safetensors")]
        return sum(int(stop) - int(start) for start, stop in spans)

    def _chunks(self, guide: str) -> list[tuple[range, Path]]:
        found = []
        for file in sorted(self.place(guide).glob("*-*.safetensors")):
            start, stop = file.stem.split("-")
            found.append((range(int(start), int(stop)), file))
        return found

    def _whole(self, rows: range, file: Path) -> bool:
        try:
            with safe_open(file, "pt") as f:
                return tuple(f.get_slice("x").get_shape()) == (len(rows), *self.shape)
        except SafetensorError:
            return False


def fingerprint(*networks: torch.nn.Module) -> str:
    """A short hash of all weights, so that samples of other weights are told apart."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
