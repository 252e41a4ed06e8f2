"""Registers, runs and records claims."""

import fnmatch
import hashlib
import importlib
import json
import math
import pkgutil
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from fairlead import __version__
from fairlead.metrics import Estimate
from fairlead.models.zoo import WEIGHTS
from fairlead.parameters import nearest
from fairlead.studies.claims._verdict import Check, verdict

FOLDER = Path(__file__).parent
RECORDED = FOLDER / "recorded"
"""One file a claim."""


@dataclass(frozen=True)
class Finding:
    """What a claim found.

    Attributes:
        measured: Numbers, lists of numbers or estimates, by name.
        checks: The statements that the claim consists of, each with whether it holds; `None`
            where the numbers cannot tell.
        nfe: Network evaluations of one sample under the method.
    """

    measured: Mapping[str, Any]
    checks: Mapping[str, Check]
    nfe: float | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and the experiment that tests it.

    Attributes:
        name: `<method>`, or `<method>-<what>` where a method has several.
        ids: Ids of the papers.
        claim: What the paper says, in a sentence.
        setting: The experiment.
        expected: The numbers or relations that would confirm it.
        seed: Seed of its random draws; a list where it runs several.
        models: Shipped models that it samples.
        check: The experiment.
    """

    name: str
    ids: tuple[str, ...]
    claim: str
    setting: str
    expected: str
    seed: int | list[int]
    models: tuple[str, ...]
    check: Callable[[], Finding]

    def inputs(self) -> str:
        """A digest of the version, the claim's code and the weights that it samples."""
        digest = hashlib.sha256(__version__.encode())
        for path in _sources(Path(self.check.__code__.co_filename)):
            digest.update(path.read_bytes())
        for model in self.models:
            for path in sorted(WEIGHTS.glob(f"{model.partition('-')[0]}*.safetensors")):
                # the independent judge counts where it is named, and its statistics with it
                if "judge" not in path.stem or "judge" in model:
                    digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def run(self) -> dict[str, Any]:
        """The result; an experiment that raises gives one with `error`."""
        from fairlead.studies.claims import _images

        _images.borrowed.clear()
        inputs = self.inputs()
        start = time.perf_counter()
        error = None
        try:
            finding = self.check()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            finding = Finding({"error": error}, {})
        return {
            "name": self.name,
            "ids": list(self.ids),
            "claim": self.claim,
            "setting": self.setting,
            "measured": plain(finding.measured),
            "expected": self.expected,
            "checks": plain(finding.checks),
            "verdict": verdict(finding.checks.values()),
            # samples shared with an earlier claim count as if they had been drawn here
            "seconds": round(time.perf_counter() - start + sum(_images.borrowed), 1),
            "seed": self.seed,
            "nfe": finding.nfe,
            "error": error,
            "inputs": inputs,
        }


def _sources(claim: Path) -> list[Path]:
    """The file of a claim and those of this folder that it imports, directly or not."""
    found, left = set(), {claim}
    while left:
        path = left.pop()
        found.add(path)
        named = re.findall(r"fairlead\.studies\.claims(?: import |\.)(\w+)", path.read_text())
        # the harness registers and stores; it does not decide what is measured
        left |= {FOLDER / f"{name}.py" for name in named if name != "_harness"} - found
    return sorted(found)


CLAIMS: dict[str, Claim] = {}


def claim(
    name: str,
    ids: tuple[str, ...],
    *,
    claim: str,
    setting: str,
    expected: str,
    seed: int | list[int] = 0,
    models: tuple[str, ...] = (),
) -> Callable[[Callable[[], Finding]], Callable[[], Finding]]:
    """Decorator: registers an experiment as a claim; arguments as in `Claim`.

    Raises:
        ValueError: The name is taken.
    """

    def enter(check: Callable[[], Finding]) -> Callable[[], Finding]:
        if name in CLAIMS:
            raise ValueError(f"claim: {name!r} is taken by {CLAIMS[name].check.__module__}")
        CLAIMS[name] = Claim(name, ids, claim, setting, expected, seed, models, check)
        return check

    return enter


@cache
def discover() -> None:
    """Imports every claim: all modules of this folder but those that begin with `_`."""
    for module in pkgutil.iter_modules([str(FOLDER)]):
        if not module.name.startswith("_"):
            importlib.import_module(f"fairlead.studies.claims.{module.name}")


def names() -> list[str]:
    """Names of all claims, in the order in which they run."""
    discover()
    return list(CLAIMS)


def select(wanted: Sequence[str] | None) -> list[Claim]:
    """Claims by name or pattern, such as `icg*`, in the order of `names`.

    Raises:
        ValueError: There is no such claim; says the nearest names.
    """
    known = names()
    for name in wanted or ():
        if not fnmatch.filter(known, name):
            raise ValueError(f"claims: unknown claim {name!r}; {nearest(name, known)}")
    return [
        CLAIMS[k] for k in known if wanted is None or any(fnmatch.fnmatch(k, w) for w in wanted)
    ]


def run(
    names: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    *,
    save: bool = False,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Runs claims.

    Args:
        names: Names of claims, or patterns such as `icg*`; `None` runs all.
        progress: Gets a line when a claim starts and one when it ends.
        save: Record each result as soon as it is there.
        resume: Do not run claims whose recorded result has the same code and weights.

    Returns:
        For each claim `name, ids, claim, setting, measured, expected, checks, verdict, seconds,
        seed, nfe, error`. A claim that raises has `error` set and the verdict `inconclusive`.

    Raises:
        ValueError: A name is unknown.
    """
    from fairlead.studies.claims import _images

    chosen = select(names)
    kept = {r["name"]: r for r in recorded()} if resume else {}
    results = []
    _images.clear()
    for i, one in enumerate(chosen, 1):
        place = f"[{i}/{len(chosen)}] {one.name}"
        old = kept.get(one.name)
        if old and not old["error"] and old["inputs"] == one.inputs():
            progress(f"{place}: {old['verdict']}, recorded")
            results.append(old)
            continue
        progress(f"{place} ...")
        result = one.run()
        said = f"error: {result['error']}" if result["error"] else result["verdict"]
        progress(f"{place}: {said} ({result['seconds']:.0f} s)")
        results.append(result)
        if save:
            record([result])
    _images.clear()
    return results


def recorded() -> list[dict[str, Any]]:
    """The recorded results, in the order of `names`; empty if there are none."""
    paths = [RECORDED / f"{name}.json" for name in names()]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def record(results: Sequence[Mapping[str, Any]]) -> None:
    """Puts results among the recorded ones, in place of older ones of the same name."""
    RECORDED.mkdir(exist_ok=True)
    for result in results:
        path = RECORDED / f"{result['name']}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dict(result), indent=1, ensure_ascii=False) + "\n")
        part.replace(path)


def plain(value: Any) -> Any:
    """Numbers, lists and mappings as JSON holds them, at four significant digits."""
    if isinstance(value, Estimate):
        return {k: plain(getattr(value, k)) for k in ("value", "low", "high")}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def show(value: Any) -> str:
    """A measured value as text."""
    if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
        return f"{show(value['value'])} [{show(value['low'])}, {show(value['high'])}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(show(v) for v in value)
    if value is None:
        return "nan"
    return f"{value:g}" if isinstance(value, float) else str(value)
