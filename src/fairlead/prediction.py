r"""What networks predict, and the exact maps between those predictions.

With `x = alpha D + sigma eps` each prediction is an affine image of the clean estimate `D`:

* `epsilon`: the noise `eps`.
* `sample`: `D` itself.
* `v_prediction`: `v = alpha eps - sigma D`.
* `flow_prediction`: the velocity `u = eps - D`.
* `edm`: the raw output `F` of a network under EDM's preconditioning.

`alpha` and `sigma` are numbers, or tensors that broadcast against `x`.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fairlead.parameters import choose

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "edm"]
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction", "edm")

Number = float | Tensor


class Prediction(NamedTuple):
    """A guided clean estimate with two ends, each `(B, ...)`.

    They are the same tensor unless a guide such as CFG++ says otherwise.

    Attributes:
        denoise: The estimate that the next sample moves to.
        renoise: The estimate whose noise is added back, and that solver histories keep.
    """

    denoise: Tensor
    renoise: Tensor


def to_x0(
    output: Tensor,
    x: Tensor,
    alpha: Number,
    sigma: Number,
    prediction: PredictionType,
    sigma_data: float = 0.5,
) -> Tensor:
    """The clean estimate `D` that a network output stands for.

    Raises:
        ValueError: The prediction is unknown, or says nothing about `D` at this level
            (`epsilon` where `alpha = 0`).
    """
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        if _is_zero(alpha):
            raise ValueError(
                "prediction: epsilon says nothing about x0 where alpha = 0; use a network that "
                "predicts v_prediction, sample or flow_prediction, or a grid that starts lower"
            )
        return (x - sigma * output) / alpha
    if prediction == "v_prediction":
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
    if prediction == "flow_prediction":
        return (x - sigma * output) / (alpha + sigma)
    if prediction == "edm":
        total = sigma**2 + alpha**2 * sigma_data**2
        return (sigma_data**2 * alpha / total) * x + (sigma * sigma_data / _sqrt(total)) * output
    choose("prediction", "prediction", prediction, PREDICTIONS)
    raise AssertionError


def from_x0(
    x0: Tensor,
    x: Tensor,
    alpha: Number,
    sigma: Number,
    prediction: PredictionType,
    sigma_data: float = 0.5,
) -> Tensor:
    """The network output that stands for a clean estimate: inverse of `to_x0`.

    Raises:
        ValueError: The prediction is unknown, or undefined at this level (all but `sample`
            where `sigma = 0`; `v_prediction` and `flow_prediction` need `x = alpha x0` there
            and return that limit's noise-free part only).
    """
    choose("prediction", "prediction", prediction, PREDICTIONS)
    if prediction == "sample":
        return x0
    if _is_zero(sigma):
        raise ValueError(f"prediction: {prediction} is undefined where sigma = 0")
    if prediction == "edm":
        total = sigma**2 + alpha**2 * sigma_data**2
        skip = sigma_data**2 * alpha / total
        return (x0 - skip * x) * (_sqrt(total) / (sigma * sigma_data))
    eps = (x - alpha * x0) / sigma
    if prediction == "epsilon":
        return eps
    return alpha * eps - sigma * x0 if prediction == "v_prediction" else eps - x0


def direction_scale(alpha: Number, sigma: Number, prediction: PredictionType) -> Number:
    """What a difference of two clean estimates is multiplied by in another space."""
    choose("prediction", "space", prediction, PREDICTIONS[:4])
    if prediction == "sample":
        return 1.0
    if prediction == "epsilon":
        return -alpha / sigma
    if prediction == "v_prediction":
        return -(alpha**2) / sigma - sigma
    return -alpha / sigma - 1


def edm_input(x: Tensor, alpha: Number, sigma: Number, sigma_data: float = 0.5) -> Tensor:
    """`x` scaled to unit variance for data of standard deviation `sigma_data`."""
    return x / _sqrt(sigma**2 + alpha**2 * sigma_data**2)


def _sqrt(value: Number) -> Number:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def _is_zero(value: Number) -> bool:
    return bool(torch.any(value == 0)) if isinstance(value, Tensor) else value == 0
