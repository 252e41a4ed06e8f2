"""How well a classifier finds in samples what they were asked to show."""

import math

import torch
from torch import Tensor

from fairlead.metrics.bootstrap import RESAMPLES, Estimate, mean_interval


def class_accuracy(
    logits: Tensor, labels: Tensor, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Share of samples whose greatest logit is that of their label.

    Args:
        logits: `(N, C)`.
        labels: `(N,)` in `0..C-1`.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Raises:
        ValueError: The shapes do not fit.
    """
    _check(logits, labels)
    return mean_interval((logits.argmax(1) == labels).double(), resamples, seed=seed)


def class_confidence(
    logits: Tensor, labels: Tensor, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean probability `p(c | x)` of the label; arguments as for `class_accuracy`."""
    return mean_interval(_log_probability(logits, labels).exp(), resamples, seed=seed)


def class_log_probability(
    logits: Tensor, labels: Tensor, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean `log p(c | x)` of the label in nats; arguments as for `class_accuracy`."""
    return mean_interval(_log_probability(logits, labels), resamples, seed=seed)


def inception_score(logits: Tensor, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """`exp(mean_x KL(p(y|x) || p(y)))`, from 1 to C, of `(N, C)` logits of any classifier.

    `p(y)` is kept fixed under resampling.

    Source:
        Salimans et al. (2016), arXiv:1606.03498, without their ten splits.
    """
    log_p = logits.detach().double().log_softmax(1)
    marginal = log_p.logsumexp(0) - math.log(len(log_p))
    mean = mean_interval((log_p.exp() * (log_p - marginal)).sum(1), resamples, seed=seed)
    ends = torch.tensor([mean.value, mean.low, mean.high], dtype=torch.float64).exp()
    return Estimate(*ends.tolist())


def _log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    _check(logits, labels)
    log_p = logits.detach().double().log_softmax(1)
    return log_p.gather(1, labels.long()[:, None])[:, 0]


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"classifier: logits must be (N, C) and labels (N,), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
