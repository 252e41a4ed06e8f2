"""Claims of guidance over several conditions, where every subset's score is known."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead.exact import LabelledMixture
from fairlead.schedules import Level
from fairlead.studies.claims import _labelled as labelled
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, equals

SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)


def plane() -> Tensor:
    """A grid on [-4, 4]^2."""
    return torch.cartesian_prod(*[torch.linspace(-4, 4, 41, dtype=torch.float64)] * 2)


def worst_error(mixture: LabelledMixture, sigma: float) -> float:
    """Root mean square of sigma times the score error of AND at weights 1, in the worst cell."""
    x, level = plane(), Level(sigma, 1.0, sigma)
    guide = fl.Multi(["row", "column"], [[1.0, "row", "none"], [1.0, "column", "none"]], "none")
    errors = []
    for row in range(2):
        for column in range(2):
            asked = {"row": row, "column": column}
            states = {
                "cond": asked,
                "row": {"row": row},
                "column": {"column": column},
                "none": {},
            }
            predictions = {k: mixture.x0(x, level, v) for k, v in states.items()}
            both = fl.combine(guide, predictions)
            apart = (both - predictions["cond"]) / sigma  # sigma times that of the score
            errors.append(apart.square().mean().sqrt().item())
    return max(errors)


@claim(
    "multi",
    ids=("XM2",),
    claim="Adding the directions of two conditions at weights 1 gives the joint conditional score "
    "exactly where the conditions are independent, and errs at every noise level where they "
    "are not.",
    setting="2 x 2 grid of Gaussians at +-1, std 0.3, alpha = 1; error: sigma times that of the "
    "score, root mean square over a grid on [-4, 4]^2 and both coordinates (that the mean is over "
    "coordinates too was set after an earlier run), worst of the four cells",
    expected="independent: below 1e-12 at sigma 0.1, 1, 3; joint [[0.45, 0.05], [0.05, 0.45]]: "
    "0.18, 0.39, 0.49, 0.27, 0.08 at sigma 0.1, 0.3, 1, 3, 10",
)
def conjunction() -> Finding:
    """Equality to rounding in the one case; in the other each published error."""
    independent, correlated = labelled.grid(0.25, 0.3), labelled.grid(0.45, 0.3)
    measured: dict[str, float] = {}
    checks: dict[str, Check] = {}
    for sigma in (0.1, 1.0, 3.0):
        error = worst_error(independent, sigma)
        measured[f"independent, sigma {sigma:g}"] = error
        checks[f"independent, sigma {sigma:g}"] = error < 1e-12
    for sigma, published in zip(SIGMAS, (0.18, 0.39, 0.49, 0.27, 0.08), strict=True):
        error = worst_error(correlated, sigma)
        measured[f"correlated, sigma {sigma:g}"] = error
        checks[f"correlated, sigma {sigma:g}"] = equals(error, published, 0.005)
    return Finding(measured, checks)
