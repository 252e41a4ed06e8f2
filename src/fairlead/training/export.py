"""Shipped models out of a run's folder: half-precision weights and their cards."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fairlead.models.zoo import NETWORKS, save
from fairlead.training.data import CLASSES, LICENCES
from fairlead.training.recipes import Training, find
from fairlead.training.trainer import SIGMA_DATA, differences

SCHEDULE = {"name": "EDM", "sigma_min": 0.002, "sigma_max": 80.0}


def export(
    folder: Path | str,
    name: str,
    destination: Path | str,
    *,
    recipe: str | Training | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Path]:
    """Makes what a recipe ships of a run: `<name><suffix>.safetensors` and `.json` each.

    A run that has not ended gives a stand-in, the mean weights of its last checkpoint, whose card
    says so; snapshots that it has not reached are left out.

    Args:
        folder: Folder of the run.
        name: Name of the shipped model, and of the recipe unless `recipe` says otherwise.
        destination: Where the files go.
        recipe: Name of the recipe, or the `Training`.
        metrics: What was measured, by shipped name, for the cards.

    Returns:
        The weight files that were written.

    Raises:
        ValueError: Unknown recipe, or the folder holds a run of another one.
        FileNotFoundError: There is no run, or an ended run lacks a snapshot.
    """
    folder, training = Path(folder), find(recipe or name)
    if not (folder / "state.json").exists():
        raise FileNotFoundError(f"export: {folder} holds no run: there is no state.json")
    kept = json.loads((folder / "state.json").read_text())
    # the budget may have been another: the card tells the minutes that were spent
    differing = [k for k in differences(kept["recipe"], training.recipe) if k != "minutes"]
    if differing:
        raise ValueError(
            f"export: {folder} holds a run of another recipe than {name!r} "
            f"({', '.join(differing)} differ)"
        )
    ended = (folder / "final.safetensors").exists()
    written = []
    for suffix, checkpoint in training.ships.items():
        final = checkpoint == "final"
        stem = checkpoint if final else f"snapshot-{checkpoint:g}"
        file = folder / f"{stem if ended or not final else 'state'}.safetensors"
        if not file.exists():
            if ended or final:
                raise FileNotFoundError(f"export: {folder} lacks {file.name}")
            continue
        tensors, metadata = _read(file)
        info = kept["info"] if final else {k: float(metadata[k]) for k in kept["info"]}
        share = info["seconds"] / 60 / kept["recipe"]["minutes"]
        if kept["recipe"].get("max_steps"):
            share = max(share, info["step"] / kept["recipe"]["max_steps"])
        if not final:
            note = f"Mean weights after {share:.0%} of the training of {name}."
        elif not ended:
            note = f"Unfinished stand-in: mean weights after {share:.0%} of the training."
        else:
            note = "Mean weights at the end of the training."
        network = NETWORKS[training.network](**training.config)
        network.load_state_dict(tensors)
        about = {
            "name": name + suffix,
            # a snapshot is taken by the step that reaches its mark, so later than the mark itself
            **_card(training, info, share if final else float(checkpoint), null=final),
            "weak": f"{name}-weak" if suffix != "-weak" and "-weak" in training.ships else None,
            "trained": date.fromtimestamp(file.stat().st_mtime).isoformat(),
            "metrics": {"loss": info["loss"], **(metrics or {}).get(name + suffix, {})},
            "note": note,
        }
        written.append(save(network, about, Path(destination)))
    return written


def _card(training: Training, info: Mapping[str, Any], share: float, null: bool) -> dict[str, Any]:
    """What the cards of a run have in common; `null` asks for a null even if never trained."""
    recipe, classes = training.recipe, CLASSES[training.data]
    dropped = recipe.condition_dropout > 0 and share > recipe.dropout_from
    return {
        "network": training.network,
        "schedule": SCHEDULE,
        "prediction": "edm",
        "sigma_data": SIGMA_DATA,
        "shape": [training.config["channels"], *[training.config["size"]] * 2],
        "classes": list(classes),
        "null": {"label": len(classes)} if null or dropped else {},
        "states": ["cond", "null"] if dropped else ["cond"],
        "data": training.data,
        "licence": {"data": LICENCES[training.data], "weights": "Apache-2.0"},
        "steps": int(info["step"]),
        "images": int(info["step"]) * recipe.batch,
        "seed": recipe.seed,
        "minutes": round(info["seconds"] / 60, 1),
    }


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mean weights in a checkpoint or a snapshot, and what is noted beside them."""
    with safe_open(file, "pt") as f:
        names = list(f.keys())
        checkpoint = any(n.startswith("ema.") for n in names)
        tensors = {
            n.removeprefix("ema."): f.get_tensor(n)
            for n in names
            if n.startswith("ema.") or not checkpoint
        }
        return tensors, f.metadata() or {}
