"""Recipes and training of the token models: denoisers, their classifiers, a language model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.discrete.process import PROCESSES, Process
from fairlead.models.zoo import NETWORKS, network, save
from fairlead.parameters import choose
from fairlead.training.tokens import SEQUENCES, Sequences, shakespeare
from fairlead.training.trainer import Budget, fit, generator

FIRST = 1e-3
"""Earliest time of training: the weights of both bounds grow without end towards 0."""

SPEECH_LENGTH = 192
NOISED = 0.08
"""Share of the characters that the language model reads wrongly, against learning by heart."""

TEST = 2000
"""Most sequences of the test split that are measured on, evenly spread over it."""

NULL_TOKEN, PAD_TOKEN = "<anyone>", "<pad>"


@dataclass(frozen=True)
class TokenTraining:
    """A token model, its data and its budget.

    Args:
        data: Name of the data set, one of `training.tokens.SEQUENCES`.
        budget: How long to train; each condition is null with `condition_dropout`.
        network: `token-transformer`, `token-classifier` or `language`, of `models.zoo.NETWORKS`.
        process: Corruption, one of `discrete.PROCESSES`; none for a language model.
        config: Arguments of the network beyond those that the data give.

    Raises:
        ValueError: Unknown data, network or process.
    """

    data: str
    budget: Budget
    network: str
    process: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose("TokenTraining", "data", self.data, SEQUENCES)
        choose("TokenTraining", "network", self.network, NETWORKS)
        if self.process is not None:
            choose("TokenTraining", "process", self.process, PROCESSES)


_MOLECULES = Budget(
    minutes=math.inf,
    max_steps=6000,
    batch=1024,
    lr=1e-3,
    decay_from=0.5,
    warmup=300,
    ema=0.999,
    condition_dropout=0.3,
)
_CLASSIFIER = replace(_MOLECULES, max_steps=3000, condition_dropout=0.0)
_SPEECH = replace(_MOLECULES, max_steps=5000, batch=256, condition_dropout=0.15)

TOKEN_RECIPES = {
    "qm9-uniform": TokenTraining("qm9", _MOLECULES, "token-transformer", "uniform"),
    "qm9-masked": TokenTraining("qm9", _MOLECULES, "token-transformer", "masked", {"time": False}),
    "qm9-uniform-classifier": TokenTraining("qm9", _CLASSIFIER, "token-classifier", "uniform"),
    "qm9-masked-classifier": TokenTraining("qm9", _CLASSIFIER, "token-classifier", "masked"),
    "shakespeare-masked": TokenTraining(
        "shakespeare", _SPEECH, "token-transformer", "masked", {"time": False}
    ),
    "shakespeare-ar": TokenTraining(
        "shakespeare", replace(_SPEECH, max_steps=1800, batch=128), "language"
    ),
}


def run_tokens(
    recipe: str | TokenTraining,
    folder: Path | str,
    destination: Path | str,
    data_root: Path | str | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda info: None,
    minutes: float | None = None,
    device: torch.device | str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Trains a token model, or goes on where `folder` stopped, and writes it with its card.

    Args:
        recipe: A name in `TOKEN_RECIPES`, or a `TokenTraining`.
        folder: Where the run lives; also keeps the table of molecular properties.
        destination: Where the weights and the card go.
        data_root: Folder of the data sets; see `training.data.data_root`.
        progress: As for `training.fit`.
        minutes: Budget in place of the recipe's.
        device: Where to train; default a GPU if there is one.
        name: Name of the model; default the recipe's.

    Returns:
        Steps, sequences seen, seconds, the running loss and what was measured on the test split.

    Raises:
        ValueError: Unknown recipe, or `folder` holds another run.
        FileNotFoundError: The data are not there.
        ImportError: RDKit or transformers is needed and missing.
    """
    if isinstance(recipe, str):
        choose("training", "recipe", recipe, TOKEN_RECIPES)
        name, recipe = name or recipe, TOKEN_RECIPES[recipe]
    budget = recipe.budget if minutes is None else replace(recipe.budget, minutes=minutes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (_load(recipe, split, data_root, folder) for split in ("train", "test"))
    task = _Task(recipe, train)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(budget.seed)
        model = NETWORKS[recipe.network](**task.config)
        where = torch.device(device)

        def loss(
            forward: Callable[..., Any], rows: Tensor, g: torch.Generator, share: float
        ) -> Tensor:
            torch.manual_seed(g.initial_seed())  # dropout draws from here
            return task.loss(forward, train, rows, g, budget.condition_dropout, where).mean()

        info = fit(model, loss, len(train), budget, folder, progress, device=device)
    about = {
        "name": name or recipe.data,
        "network": recipe.network,
        **task.card(),
        "data": recipe.data,
        "licence": {"data": train.licence, "weights": "Apache-2.0"},
        "steps": info["step"],
        "images": info["images"],
        "seed": budget.seed,
        "minutes": round(info["seconds"] / 60, 1),
        "trained": date.today().isoformat(),
        "metrics": {"loss": info["loss"]},
        "note": "Mean weights at the end of the training.",
    }
    path = save(model.cpu(), about, Path(destination))
    shipped = network(path).to(device)
    measured = task.measure(shipped, test, where)
    about["metrics"] |= measured
    save(model, about, Path(destination))
    return {**info, **measured, "models": [str(path)]}


def _load(
    recipe: TokenTraining, split: str, data_root: Path | str | None, folder: Path
) -> Sequences:
    if recipe.network == "language":
        return shakespeare(split, data_root, length=SPEECH_LENGTH)
    return SEQUENCES[recipe.data](split, data_root, folder)


class _Task:
    """The loss of a recipe on its data, and what its card says of them."""

    def __init__(self, recipe: TokenTraining, data: Sequences) -> None:
        self.kind = recipe.network
        self.sizes = {k: len(names) for k, names in data.classes.items()}
        self.data = data
        count, length = len(data.vocabulary), data.tokens.shape[1]
        self.process: Process | None = None
        if recipe.process is not None:
            self.process = PROCESSES[recipe.process](count)
        if self.kind == "language":
            ((condition, size),) = self.sizes.items()
            self.condition, self.first = condition, count
            self.null, self.pad = count + size, count + size + 1
            own: dict[str, Any] = {"tokens": count + size + 2, "length": length, "pad": self.pad}
        else:
            assert self.process is not None
            own = {
                "tokens": count,
                "length": length,
                "mask": self.process.mask is not None,
                ("properties" if self.kind == "token-classifier" else "conditions"): self.sizes,
            }
        self.config = {**own, **recipe.config}

    def card(self) -> dict[str, Any]:
        """What the model needs to be used."""
        classes = {k: list(names) for k, names in self.data.classes.items()}
        vocabulary = list(self.data.vocabulary)
        if self.kind == "language":
            names = [f"<{n}>" for n in self.data.classes[self.condition]]
            vocabulary += [*names, NULL_TOKEN, PAD_TOKEN]
            return {
                "shape": [self.config["length"]],
                "vocabulary": vocabulary,
                "classes": classes,
                "null": {self.condition: NULL_TOKEN},
                "states": ["cond", "null"],
            }
        assert self.process is not None
        made = {
            "shape": [self.config["length"]],
            "vocabulary": vocabulary,
            "classes": classes,
            "process": {"name": self.process.name, "eps": self.process.eps},
        }
        if self.kind == "token-transformer":
            made |= {"null": dict(self.sizes), "states": ["cond", "null"]}
        return made

    def loss(
        self,
        forward: Callable[..., Any],
        data: Sequences,
        rows: Tensor,
        g: torch.Generator,
        dropout: float,
        device: torch.device,
    ) -> Tensor:
        """The loss of each sequence: nats a token, or of all properties together."""
        x = data.tokens[rows].long()
        conditions = {k: v[rows] for k, v in data.conditions.items()}
        if self.kind == "token-classifier":
            z, t = self._corrupt(x, g)
            logits = forward(z.to(device), t.to(device))
            return sum(  # type: ignore[return-value]
                F.cross_entropy(logits[k].float(), v.to(device), reduction="none")
                for k, v in conditions.items()
            )
        for k, v in conditions.items():
            dropped = torch.rand(len(rows), generator=g) < dropout
            conditions[k] = torch.where(dropped, self.sizes[k], v)
        if self.kind == "language":
            start = self.first + conditions[self.condition][:, None]  # null comes after the last
            noise = torch.randint(self.first, x.shape, generator=g)
            wrong = torch.rand(x.shape, generator=g) < (NOISED if dropout else 0.0)
            inputs = torch.cat([start, torch.where(wrong, noise, x)[:, :-1]], 1)
            logits = forward(inputs.to(device)).float()
            return F.cross_entropy(logits.transpose(1, 2), x.to(device), reduction="none").mean(1)
        assert self.process is not None
        z, t = self._corrupt(x, g)
        x, z, t = x.to(device), z.to(device), t.to(device)
        logits = forward(z, t, **{k: v.to(device) for k, v in conditions.items()})
        return self.process.loss(logits, x, z, t).mean(1)

    def _corrupt(self, x: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noisy sequences and their times, which are spread evenly over the batch."""
        assert self.process is not None
        spread = (torch.arange(len(x)) / len(x) + torch.rand((), generator=g)) % 1
        t = FIRST + (1 - FIRST) * spread
        return self.process.corrupt(x, t, g), t

    @torch.no_grad()
    def measure(self, model: nn.Module, test: Sequences, device: torch.device) -> dict[str, float]:
        """Loss on the test split, and the accuracy of a classifier on clean sequences."""
        totals = []
        count = min(len(test), TEST)
        kept = torch.linspace(0, len(test) - 1, count).long()
        test = replace(
            test,
            tokens=test.tokens[kept],
            conditions={k: v[kept] for k, v in test.conditions.items()},
        )
        for i, rows in enumerate(torch.split(torch.arange(count), 256)):
            g = generator(0, 2, i)
            totals.append(self.loss(model, test, rows, g, 0.0, device).double().cpu())
        measured = {"test_loss": torch.cat(totals).mean().item()}
        if self.kind == "token-classifier":
            right: dict[str, list[Tensor]] = {k: [] for k in self.sizes}
            for rows in torch.split(torch.arange(count), 256):
                z = test.tokens[rows].long().to(device)
                logits = model(z, torch.zeros(len(z), device=device))
                for k, v in logits.items():
                    right[k].append(v.argmax(1).cpu() == test.conditions[k][rows])
            measured |= {
                f"accuracy_{k}": torch.cat(v).double().mean().item() for k, v in right.items()
            }
        return measured
