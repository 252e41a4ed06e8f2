"""Language models from a folder on this machine, or shipped ones by name."""

import json
from pathlib import Path
from typing import Any


def load_language(name: str | Path, *, device: str | None = None) -> tuple[Any, Any]:
    """A language model and its tokenizer.

    Weights come from safetensors alone, classes from transformers alone, and nothing from a
    network.

    Args:
        name: A folder as `save_pretrained` writes it, with its tokenizer; or a shipped model,
            `shakespeare-ar`.
        device: Where it runs; default the CPU.

    Returns:
        A decoder-only or encoder-decoder model in evaluation mode, and a tokenizer.

    Raises:
        ValueError: It is neither (ids of a hub are refused), brings code of its own, or has
            weights that are no safetensors.
        ImportError: transformers is not installed.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        return _shipped(name, device)
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"generate: {folder} has no weights as safetensors; nothing else is read")
    config = json.loads((folder / "config.json").read_text())
    if "auto_map" in config:
        raise ValueError(f"generate: {folder} brings code of its own, which is not run")
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    kind = AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else AutoModelForCausalLM
    options = {"local_files_only": True, "trust_remote_code": False}
    model = kind.from_pretrained(str(folder), use_safetensors=True, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    return (model if device is None else model.to(device)), tokenizer


def _shipped(name: str | Path, device: str | None) -> tuple[Any, Any]:
    from fairlead.models import zoo

    try:
        return zoo.language(str(name), device=device)
    except ValueError as error:
        raise ValueError(
            f"generate: {name} is neither a shipped language model nor a folder with config.json; "
            f"ids of a hub are not loaded: download the model first ({error})"
        ) from None
