"""Models that ship with the package, and loading of weights that lie beside a card.

A model is two files: `<name>.safetensors`, float16 parameters, and `<name>.json`, its card, which
says how to build the network and where everything comes from. Nothing that is loaded is ever
executed, and weights that do not fit their card are refused.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fairlead.denoiser import Denoiser
from fairlead.discrete.classifier import Classifier as TokenJudge
from fairlead.discrete.denoiser import TokenDenoiser
from fairlead.discrete.process import PROCESSES
from fairlead.energy.classifier import Classifier as ImageJudge
from fairlead.models.classifier import Classifier
from fairlead.models.dit import DiT
from fairlead.models.language import CharacterLM, character_tokenizer
from fairlead.models.sequence import TokenClassifier, TokenTransformer
from fairlead.models.unet import UNet
from fairlead.parameters import choose, nearest
from fairlead.schedules import EDM, VP, NoiseSchedule, RectifiedFlow

WEIGHTS = Path(__file__).parent / "weights"
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "dit": DiT,
    "classifier": Classifier,
    "token-transformer": TokenTransformer,
    "token-classifier": TokenClassifier,
    "language": CharacterLM,
}
SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "EDM": EDM,
    "VP": VP,
    "RectifiedFlow": RectifiedFlow,
}
PICKLES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"})

Name = str | os.PathLike[str]


def load(name: Name, *, weak: bool = False, device: torch.device | str | None = None) -> Denoiser:
    """A model as a denoiser: frozen, in evaluation mode, in float32.

    Args:
        name: A shipped model (see `models`), a `.safetensors` file with its card beside it, or a
            folder that holds one such pair.
        weak: Load the model's weak companion instead, which is also `.models["weak"]`.
        device: Where the weights go; default the CPU.

    Returns:
        The denoiser. Its weak companion, if the card names one, is read when first asked for.

    Raises:
        ValueError: Unknown name (says the nearest), a pickled file, a damaged file, or weights
            that do not fit the card (names the tensor).
        FileNotFoundError: The file, or its card, is not there.

    Example:
        >>> import fairlead as fl
        >>> fl.load("digits").shape
        (1, 8, 8)
    """
    path = _locate(name)
    about = _read_card(path)
    companion = _companion(path, about)
    if weak:
        if companion is None:
            raise ValueError(f"load: {path.stem} has no weak companion")
        path, about, companion = companion, _read_card(companion), None
    network = _build(path, about).to(device)
    if "process" in about:
        return _token_denoiser(path, network, about)
    try:
        schedule = dict(about["schedule"])
        denoiser = Denoiser(
            network,
            SCHEDULES[schedule.pop("name")](**schedule),
            about["prediction"],
            null=about["null"],
            shape=tuple(about["shape"]),
            sigma_data=about["sigma_data"],
            trained=about["states"],
            time_embedding="time",
            embeddings={"label": "label"},
            choices={"label": len(about["classes"])},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"load: the card of {path} is no denoiser's: {error!r}") from None
    if companion is not None:
        denoiser.models = _Lazily({"weak": companion}, device)
    return denoiser


def classifier(name: Name, *, device: torch.device | str | None = None) -> Classifier:
    """The classifier of a data set (`digits`, `cifar10`), another one, or of a file as in `load`.

    Frozen, in evaluation mode, in float32; `features(x)` gives what the metrics compare. Another
    one is `cifar10-judge`, of other widths, seed and order of the images: guide by `cifar10` and
    score by it, for a judge flatters the samples that it guided.

    Raises:
        ValueError: As `load`, and where the model is no classifier.
        FileNotFoundError: As `load`.
    """
    shipped = isinstance(name, str) and f"{name}-classifier" in _names()
    path = _locate(f"{name}-classifier" if shipped else name)
    network = _build(path, _read_card(path)).to(device)
    if not isinstance(network, Classifier):
        known = [n.removesuffix("-classifier") for n in _names() if n.endswith("-classifier")]
        raise ValueError(f"classifier: {path.stem} is none; {nearest(path.stem, known)}")
    return network


def network(name: Name, *, device: torch.device | str | None = None) -> nn.Module:
    """The bare network of a shipped model, or of a file or folder as in `load`.

    Frozen, in evaluation mode, in float32.

    Raises:
        ValueError: As `load`.
        FileNotFoundError: As `load`.
    """
    path = _locate(name)
    return _build(path, _read_card(path)).to(device)


def reference(name: str) -> dict[str, Tensor]:
    """Statistics of a data set under the features of its classifier, or of another one.

    Args:
        name: `digits` or `cifar10`, or `cifar10-judge` for the features of that classifier.

    Returns:
        `mean` `(d,)` and `cov` `(d, d)` of the whole training split, in float64; `count`, its
        size; `features` `(n, d)` of at most 2000 test images and their `labels` `(n,)`.

    Raises:
        ValueError: Unknown name, or a damaged file.
    """
    end = "-reference"
    known = sorted(p.stem.removesuffix(end) for p in WEIGHTS.glob(f"*{end}.safetensors"))
    if name not in known:
        raise ValueError(f"reference: unknown data set {name!r}; {nearest(name, known)}")
    kept = _read_tensors(WEIGHTS / f"{name}{end}.safetensors")
    doubles = {key: kept[key].double() for key in ("mean", "cov")}
    return {**kept, **doubles, "features": kept["features"].float()}


def card(name: Name) -> dict[str, Any]:
    """The card of a shipped model, or of a file or folder as in `load`.

    Raises:
        ValueError: Unknown name, or the card is no JSON object.
        FileNotFoundError: There is no card.
    """
    return _read_card(_locate(name))


def models() -> list[dict[str, Any]]:
    """The cards of all shipped models, classifiers included, by name."""
    return [card(name) for name in _names()]


def save(network: nn.Module, about: Mapping[str, Any], folder: Path) -> Path:
    """Writes a network and its card as `load` reads them; the inverse of `load`.

    Parameters are stored in float16, buffers as they are.

    Args:
        network: One of `NETWORKS`.
        about: The card; `name` and `network` are required, `config` and `parameters` are filled
            in.
        folder: Where the two files go; made if missing.

    Returns:
        The path of the weights.

    Raises:
        ValueError: The card does not build this network, or a weight leaves float16's range.
    """
    kind = NETWORKS.get(about["network"])
    if not (isinstance(kind, type) and isinstance(network, kind)):
        raise ValueError(
            f"save: the card says network={about['network']!r}, got {type(network).__name__}"
        )
    parameters = dict(network.named_parameters())
    tensors = {
        k: (v.detach().half() if k in parameters else v.detach()).cpu().contiguous()
        for k, v in network.state_dict().items()
    }
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"save: {key} is not finite in float16")
    count = sum(p.numel() for p in parameters.values())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{about['name']}.safetensors"
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private to its writer
    text = json.dumps({**about, "config": network.config, "parameters": count}, indent=1)
    path.with_suffix(".json").write_text(text + "\n")
    return path


@overload
def judge(
    name: Name, label: int | Tensor | list[int], property: None = None, *, device: Any = None
) -> ImageJudge: ...


@overload
def judge(
    name: Name, label: int | Tensor | list[int], property: str, *, device: Any = None
) -> TokenJudge: ...


def judge(
    name: Name, label: int | Tensor | list[int], property: str | None = None, *, device: Any = None
) -> ImageJudge | TokenJudge:
    """A shipped classifier as an energy that guides ask for, or that scores what others guided.

    Args:
        name: `digits`, `cifar10` or `cifar10-judge` (clean images); `qm9-masked` or
            `qm9-uniform` (noisy tokens); or a file or folder as in `load`.
        label: The class asked for: one for all samples, or `(B,)`.
        property: Of tokens: which property, such as `qed`.
        device: Where the weights go; default the CPU.

    Raises:
        ValueError: As `load`; the model is no classifier, or has no such property.

    Example:
        >>> import torch, fairlead as fl
        >>> likely = fl.models.zoo.judge("qm9-uniform", 9, "qed")
        >>> likely.name
        'qed'
        >>> guiding = fl.models.zoo.judge("cifar10", 3)
        >>> independent = fl.models.zoo.judge("cifar10-judge", 3)
        >>> independent(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1])
    """
    shipped = isinstance(name, str) and f"{name}-classifier" in _names()
    path = _locate(f"{name}-classifier" if shipped else name)
    made = _build(path, _read_card(path)).to(device)
    if isinstance(made, Classifier):
        if property is not None:
            raise ValueError(f"judge: {path.stem} judges images, it has no property {property!r}")
        return ImageJudge(made, label, name=path.stem)
    if not isinstance(made, TokenClassifier):
        raise ValueError(f"judge: {path.stem} is no classifier")
    asked = property or ""
    choose("judge", "property", asked, made.config["properties"])
    return TokenJudge(made, label, asked, asked)


def language(name: Name, *, device: torch.device | str | None = None) -> tuple[Any, Any]:
    """A shipped language model, as a model and a tokenizer of transformers.

    Args:
        name: `shakespeare-ar`, or a file or folder as in `load`.
        device: Where the weights go; default the CPU.

    Returns:
        The `LlamaForCausalLM`, and its tokenizer, which pads on the left.

    Raises:
        ValueError: As `load`, and where the model is no language model.
        ImportError: transformers is not installed.
    """
    path = _locate(name)
    about = _read_card(path)
    made = _build(path, about).to(device)
    if not isinstance(made, CharacterLM):
        raise ValueError(f"language: {path.stem} is no language model")
    return made.model, character_tokenizer(about["vocabulary"], made.config["pad"])


def _token_denoiser(path: Path, made: nn.Module, about: Mapping[str, Any]) -> TokenDenoiser:
    try:
        process = dict(about["process"])
        kind = PROCESSES[process.pop("name")]
        return TokenDenoiser(
            made,
            kind(about["config"]["tokens"], **process),
            about["null"],
            length=about["shape"][0],
            vocabulary=about["vocabulary"],
            trained=about["states"],
            choices={k: len(v) for k, v in about["classes"].items()},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"load: the card of {path} is no denoiser's: {error!r}") from None


class _Lazily(Mapping[str, Denoiser]):
    """Denoisers by name, each loaded when first asked for."""

    def __init__(self, paths: Mapping[str, Path], device: torch.device | str | None) -> None:
        self._paths = dict(paths)
        self._device = device
        self._loaded: dict[str, Denoiser] = {}

    def __getitem__(self, name: str) -> Denoiser:
        if name not in self._loaded:
            self._loaded[name] = load(self._paths[name], device=self._device)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _names() -> list[str]:
    return sorted(p.stem for p in WEIGHTS.glob("*.json"))


def _locate(name: Name) -> Path:
    """The weights that a name, a file or a folder stands for."""
    if isinstance(name, str) and name in _names():
        return WEIGHTS / f"{name}.safetensors"
    path = Path(name)
    if path.suffix in PICKLES:
        raise ValueError(
            f"load: {path} is a pickle, which can run any code when read; convert it to "
            "safetensors where you trust it, with a card beside it"
        )
    if path.suffix == ".safetensors":
        return path
    if path.is_dir():
        found = [p for p in sorted(path.glob("*.safetensors")) if p.with_suffix(".json").exists()]
        if len(found) != 1:
            which = ", ".join(p.name for p in found) or "none"
            raise ValueError(
                f"load: {path} must hold one .safetensors file with its .json card, holds {which}"
            )
        return found[0]
    raise ValueError(f"load: unknown model {str(name)!r}; {nearest(str(name), _names())}")


def _read_card(path: Path) -> dict[str, Any]:
    file = path.with_suffix(".json")
    if not file.exists():
        raise FileNotFoundError(f"load: {path} needs its card beside it, {file.name}")
    try:
        about = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"load: {file} is no JSON: {error}") from None
    if not isinstance(about, dict):
        raise ValueError(f"load: {file} must hold a JSON object")
    return about


def _companion(path: Path, about: Mapping[str, Any]) -> Path | None:
    weak = about.get("weak")
    if weak is None:
        return None
    if Path(weak).name != weak:
        raise ValueError(f"load: weak must name a file beside {path}, got {weak!r}")
    return path.with_name(f"{weak}.safetensors")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"load: there is no {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"load: {path} is no whole safetensors file: {error}") from None


def _build(path: Path, about: Mapping[str, Any]) -> nn.Module:
    """The network that the card describes, with the weights of the file."""
    kind = about.get("network")
    if kind not in NETWORKS:
        raise ValueError(f"load: the card of {path} has an unknown network {kind!r}")
    try:
        # shapes first, without memory: a card cannot make us allocate what the file does not hold
        with torch.device("meta"):
            network = NETWORKS[kind](**about.get("config", {}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"load: the config in the card of {path} fits no {kind}: {error}"
        ) from None
    tensors = _read_tensors(path)
    expected = network.state_dict()
    for key in expected.keys() | tensors.keys():
        if key not in tensors:
            raise ValueError(f"load: {path} lacks the tensor {key}, which its card asks for")
        if key not in expected:
            raise ValueError(f"load: {path} holds a tensor {key}, which its card does not know")
        ours, theirs = expected[key], tensors[key]
        if ours.shape != theirs.shape:
            raise ValueError(
                f"load: {path}: {key} must have shape {tuple(ours.shape)} by its card, "
                f"got {tuple(theirs.shape)}"
            )
        if ours.is_floating_point() != theirs.is_floating_point():
            raise ValueError(f"load: {path}: {key} must be like {ours.dtype}, got {theirs.dtype}")
        tensors[key] = theirs.to(ours.dtype)
        if not theirs.isfinite().all():
            raise ValueError(f"load: {path}: {key} holds nan or inf")
    if any(b.is_meta and k not in expected for k, b in network.named_buffers()):
        # buffers that are no weights are made by the constructor; the sizes are known to be right
        with torch.random.fork_rng():
            network = NETWORKS[kind](**about.get("config", {}))
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)
