"""Pipelines from a folder on this machine, without running anything that the folder brings."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["picture", "video", "audio"]

PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
"""Endings of files that can run code when they are loaded."""

LIBRARIES = frozenset({"diffusers", "transformers"})
"""Where components may come from, beside the pipelines of diffusers itself."""


def load_pipeline(
    folder: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> Any:
    """A diffusers pipeline from a local folder, as `save_pretrained` writes it.

    Weights come from safetensors alone, classes from diffusers and transformers alone, and
    nothing from a network.

    Args:
        folder: The folder with `model_index.json`.
        device: Where it runs; default the CPU.
        dtype: Dtype of the weights; default float32.

    Raises:
        ValueError: It is no folder (ids of a hub are refused), no pipeline, brings code of its
            own, or has weights that are no safetensors.
    """
    where = Path(folder)
    _check(where)
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        str(where), use_safetensors=True, local_files_only=True
    )
    if dtype is not None:
        pipe = pipe.to(dtype)
    return pipe if device is None else pipe.to(device)


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"pipeline: {folder} is no folder on this machine; ids of a hub are not loaded: "
            "download the pipeline first and give its folder"
        )
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"pipeline: {folder} has no model_index.json; give the folder that "
            "pipe.save_pretrained wrote"
        )
    try:
        entries = json.loads(index.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"pipeline: {index} is no JSON: {error}") from None
    name = entries.get("_class_name") if isinstance(entries, dict) else None
    import diffusers

    if not isinstance(name, str) or not hasattr(diffusers, name):
        raise ValueError(
            f"pipeline: {index} names the class {name!r}, which is no pipeline of diffusers "
            f"{diffusers.__version__}; code that a folder brings is not run"
        )
    for part, entry in entries.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[:1] == [None]:
            continue
        library = entry[0]
        if library not in LIBRARIES and not hasattr(diffusers.pipelines, str(library)):
            raise ValueError(
                f"pipeline: {part} comes from {library!r}; components come from diffusers and "
                "transformers alone"
            )
        _check_weights(folder / part)


def _check_weights(folder: Path) -> None:
    """Refuses weights that could run code; beside safetensors they are never read."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    pickles = [f for f in files if f.suffix in PICKLES]
    if pickles and not any(f.suffix == ".safetensors" for f in files):
        raise ValueError(
            f"pipeline: {pickles[0]} can run code when it is loaded, and there is no .safetensors "
            "beside it: load it where you trust it, and write it anew with "
            "pipe.save_pretrained(folder, safe_serialization=True)"
        )


def kind_of(pipe: Any) -> Kind:
    """What a pipeline makes."""
    if getattr(pipe, "video_processor", None) is not None:
        return "video"
    return "picture" if getattr(pipe, "image_processor", None) is not None else "audio"


def accepted(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are given, which the pipeline has to know.

    Raises:
        ValueError: It does not know one.
    """
    names = inspect.signature(type(pipe).__call__).parameters
    made = {n: v for n, v in arguments.items() if v is not None}
    for name in made:
        if name not in names:
            raise ValueError(f"pipeline: {type(pipe).__name__} takes no {name}")
    return made


def generate(pipe: Any, seed: int, arguments: Mapping[str, Any]) -> Any:
    """One picture (PIL), video (a list of PIL) or sound (`(channels, samples)`).

    Args:
        pipe: The pipeline; it may be steered.
        seed: Seed of the call's generator, on the CPU, so that every device starts alike.
        arguments: Further arguments of the call.
    """
    kind = kind_of(pipe)
    made = pipe(
        **arguments,
        generator=torch.Generator().manual_seed(seed),
        output_type="np" if kind == "audio" else "pil",
    )
    if kind == "audio":
        sound = torch.as_tensor(made.audios[0]).float()
        return sound[None] if sound.ndim == 1 else sound
    return made.frames[0] if kind == "video" else made.images[0]


def sampling_rate(pipe: Any) -> int:
    """Samples a second of the sound that a pipeline makes.

    Raises:
        ValueError: Neither its vocoder nor its autoencoder says.
    """
    for part in ("vocoder", "vae"):
        rate = getattr(getattr(getattr(pipe, part, None), "config", None), "sampling_rate", None)
        if rate is not None:
            return int(rate)
    raise ValueError(f"pipeline: {type(pipe).__name__} does not say its sampling rate")
