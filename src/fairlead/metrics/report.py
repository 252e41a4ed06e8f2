"""All metrics of one set of samples, as `fairlead compare` prints them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fairlead.metrics.bootstrap import Estimate
from fairlead.metrics.classifier import class_accuracy, class_confidence
from fairlead.metrics.diversity import class_diversity
from fairlead.metrics.frechet import frechet_from_features
from fairlead.metrics.neighbours import neighbour_metrics
from fairlead.metrics.saturation import clipped_fraction, saturation

REFERENCE = ("mean", "cov", "features")


def report(
    features: Tensor,
    logits: Tensor | None,
    labels: Tensor,
    images: Tensor | None,
    reference: Mapping[str, Tensor],
    *,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The metrics of generated samples.

    Reference features are thinned to the number of samples, in an order fixed by `seed`: the
    neighbour metrics compare at equal numbers only. `diversity` is `nan` where no class has
    two samples.

    Args:
        features: `(N, d)` of the samples, N > 5.
        logits: `(N, C)` of the same, or `None`.
        labels: `(N,)` classes asked for.
        images: `(N, 3, H, W)` in [-1, 1], or `None`.
        reference: `mean` `(d,)` and `cov` `(d, d)` of the training set's features, and
            `features` `(M, d)` of held-out images.
        seed: Seed of all intervals.

    Returns:
        `fd`, `precision`, `recall`, `density`, `coverage`, `diversity`; with logits `accuracy`
        and `confidence`; with images `saturation` and `clipped`.

    Raises:
        ValueError: The reference lacks an entry, or shapes do not fit.
    """
    missing = [name for name in REFERENCE if name not in reference]
    if missing:
        raise ValueError(f"report: reference must have {', '.join(REFERENCE)}, lacks {missing}")
    if len(labels) != len(features):
        raise ValueError(
            f"report: labels must be one a sample, got {len(labels)} for {len(features)}"
        )
    found = {"fd": frechet_from_features(features, reference["mean"], reference["cov"], seed=seed)}
    held = reference["features"]
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))
    near = neighbour_metrics(held[order[: len(features)].to(held.device)], features, seed=seed)
    found |= {
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
    }
    if logits is not None:
        found["accuracy"] = class_accuracy(logits, labels, seed=seed)
        found["confidence"] = class_confidence(logits, labels, seed=seed)
    pairs = labels.bincount().max() > 1
    found["diversity"] = (
        class_diversity(features, labels, seed=seed) if pairs else Estimate(math.nan)
    )
    if images is not None:
        found["saturation"] = saturation(images, seed=seed)
        found["clipped"] = clipped_fraction(images, seed=seed)
    return found
