"""Samples of the shipped image models, and how two guides differ on the same noise."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from fairlead.metrics import (
    Estimate,
    bootstrap,
    frechet_distance,
    mean_interval,
    moments,
    precision_recall,
    saturation,
)
from fairlead.metrics.bootstrap import pair_means
from fairlead.models import zoo

N = 400
STEPS = 16
SAMPLER = "dpmpp_2m"
SETTING = f"{N} samples, {STEPS} steps of DPM-Solver++(2M), bfloat16 autocast as in training"
CHUNK = 100
"""Samples at a time: larger batches are no faster on a CPU."""
RESAMPLES = 100


@dataclass(frozen=True)
class Samples:
    """Samples of a model under a guide.

    Attributes:
        x: `(N, C, H, W)` in [-1, 1].
        labels: `(N,)` classes asked for, the same number of each.
        features: `(N, d)` of the data set's classifier.
        logits: `(N, classes)` of it.
        data: Name of the data set.
        nfe: Evaluations of one sample.
        seconds: What drawing them took.
    """

    x: Tensor
    labels: Tensor
    features: Tensor
    logits: Tensor
    data: str
    nfe: float
    seconds: float

    @cached_property
    def right(self) -> Tensor:
        """`(N,)` 1 where the classifier finds the class asked for, else 0."""
        return (self.logits.argmax(1) == self.labels).double()

    @cached_property
    def confidence(self) -> Tensor:
        """`(N,)` probability of the class that the classifier finds likeliest."""
        return self.logits.double().softmax(1).amax(1)

    @property
    def accuracy(self) -> Estimate:
        """Share of samples of the class asked for."""
        return mean_interval(self.right)

    @property
    def fd(self) -> float:
        """Fréchet distance to the training set."""
        return _fd(self.features, self.data)

    @property
    def diversity(self) -> float:
        """Mean distance of features within a class."""
        return _diversity(self.features, self.labels)

    @cached_property
    def recall(self) -> Estimate:
        """Share of held-out images inside the samples' neighbourhoods."""
        held = reference(self.data)["features"][: len(self.x)]
        return precision_recall(held, self.features)[1]

    @property
    def saturation(self) -> Estimate:
        """Mean saturation of colours."""
        return saturation(self.x)

    def summary(self) -> dict[str, Any]:
        """The numbers that every image claim shows."""
        return {"accuracy": self.accuracy, "FD": self.fd, "diversity": self.diversity}


_cache: dict[Any, Samples] = {}
borrowed: list[float] = []
"""Seconds of samples that a claim took from the cache."""


def clear() -> None:
    """Forgets all samples and models."""
    _cache.clear()
    _models.clear()
    reference.cache_clear()


@cache
def reference(data: str) -> dict[str, Tensor]:
    """Statistics of a data set, read once."""
    return zoo.reference(data)


_models: dict[str, Any] = {}


def draw(
    model: str = "cifar10",
    guide: str = "none",
    *,
    null: bool = False,
    n: int = N,
    steps: int = STEPS,
    seed: int = 0,
    half: bool = True,
) -> Samples:
    """Samples with as many of each class, from noise that depends on seed and index alone.

    Args:
        model: A shipped model.
        guide: Text of the guide.
        null: Ask for the null condition instead of a class: unconditional sampling.
        n: Number of samples.
        steps: Steps of the sampler.
        seed: Seed.
        half: Autocast to bfloat16; without, float32, faster on CPUs that must emulate it.
    """
    key = (model, guide, null, n, steps, seed, half)
    if key in _cache:
        borrowed.append(_cache[key].seconds)
        return _cache[key]
    start = time.perf_counter()
    data = model.partition("-")[0]
    if model not in _models:
        _models[model] = fl.load(model)
    denoiser = _models[model]
    for each in (denoiser, *denoiser.models.values()):
        each.autocast = torch.bfloat16 if half else None
    labels = torch.arange(n) % denoiser.choices["label"]
    asked = torch.full_like(labels, denoiser.null["label"]) if null else labels
    parts, nfe = [], 0.0
    for first in range(0, n, CHUNK):
        out = fl.sample(
            denoiser,
            {"label": asked[first : first + CHUNK]},
            guide=guide,
            sampler=SAMPLER,
            steps=steps,
            seed=seed,
            first=first,
            record=False,
        )
        parts.append(out.x)
        nfe += out.nfe.double().sum().item() / n
    x = torch.cat(parts).clamp(-1, 1)
    judge = zoo.classifier(data)
    with torch.no_grad():
        features = torch.cat([judge.features(p) for p in torch.split(x, CHUNK)])
        logits = judge.outputs(features)
    found = Samples(x, labels, features, logits, data, nfe, time.perf_counter() - start)
    _cache[key] = found
    return found


def paired(statistic: Callable[[Tensor], float], n: int, confidence: float = 0.95) -> Estimate:
    """A difference of two sets from the same noise: rows are drawn anew in both at once.

    Args:
        statistic: From an index of rows to the difference.
        n: Number of samples.
        confidence: Probability of the interval.
    """
    return bootstrap(
        statistic, torch.arange(n), resamples=RESAMPLES, confidence=confidence, centred=True
    )


def accuracy_change(a: Samples, b: Samples) -> Estimate:
    """Accuracy of `a` less that of `b`."""
    return mean_interval(a.right - b.right)


def confidence_change(a: Samples, b: Samples) -> Estimate:
    """Confidence of `a` less that of `b`."""
    return mean_interval(a.confidence - b.confidence)


def saturation_change(a: Samples, b: Samples) -> Estimate:
    """Saturation of `a` less that of `b`."""
    return mean_interval(_saturations(a.x) - _saturations(b.x))


def fd_change(a: Samples, b: Samples, confidence: float = 0.95) -> Estimate:
    """Fréchet distance of `a` less that of `b`; both have the bias of the same number."""
    return paired(
        lambda rows: _fd(a.features[rows], a.data) - _fd(b.features[rows], b.data),
        len(a.x),
        confidence,
    )


def diversity_change(a: Samples, b: Samples) -> Estimate:
    """Diversity of `a` less that of `b`."""
    return paired(
        lambda rows: (
            _diversity(a.features[rows], a.labels[rows])
            - _diversity(b.features[rows], b.labels[rows])
        ),
        len(a.x),
    )


def _fd(features: Tensor, data: str) -> float:
    known = reference(data)
    return frechet_distance(*moments(features), known["mean"], known["cov"])


def _diversity(features: Tensor, labels: Tensor) -> float:
    means = []
    for c in torch.unique(labels).tolist():
        own = features[labels == c].double()
        if len(own) < 2:  # a resampled class may hold one row, or none
            continue
        means.append(pair_means(torch.cdist(own, own), torch.ones(1, len(own)).double()))
    return torch.cat(means).mean().item()


def _saturations(images: Tensor) -> Tensor:
    rgb = (images.double() + 1) / 2
    high, low = rgb.amax(1), rgb.amin(1)
    return ((high - low) / high.clamp(min=1e-12)).flatten(1).mean(1)
