"""Claim of the energy step that keeps two bodies apart."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.metrics import Estimate, bootstrap, mean_interval
from fairlead.studies.claims import _labelled as labelled
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees

CENTRES = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)]


def overlap(z: Tensor) -> Tensor:
    """The overlap of two discs of radius 0.5 along the line of their centres, `(B,)`."""
    apart: Tensor = (z[:, :2] - z[:, 2:]).norm(dim=1)
    return (1 - apart).clamp(min=0)


def share(x: Tensor) -> float:
    """Largest distance of the share of any component from a quarter, over both discs."""
    near = torch.cdist(x.reshape(-1, 2), torch.tensor(CENTRES, dtype=x.dtype)).argmin(1)
    shares = torch.bincount(near, minlength=4) / len(near)
    return (shares - 0.25).abs().max().item()


@claim(
    "descent",
    ids=("S072",),
    claim="An energy step on the clean estimate keeps two bodies apart and changes where each of "
    "them lies little.",
    setting="two discs of radius 0.5, each centre a mixture of four Gaussians at radius 1, std "
    "0.35, independent, exact denoiser; energy the squared overlap, 42 DDIM steps on lam -4..4, s "
    "= 7 and 0.7, decay 0.9, no damping, 4000 samples",
    expected="overlapping pairs 32 %, 0 % with s = 7, 10 % with 0.7, then none deeper than 0.02; "
    "std of a coordinate 0.76, 0.83 and 0.78; mean radius 1.02 and 1.13; shares of the components "
    "within 0.02 of a quarter",
)
def discs() -> Finding:
    """Each number as published, the shares by their bound."""
    both = [[*a, *b] for a in CENTRES for b in CENTRES]
    d, at = GaussianMixture(both, 0.35**2).denoiser(fl.schedules.VP()), labelled.levels(-4, 4, 42)
    energy = fl.energy.Function(lambda z: overlap(z).square(), name="overlap")
    published = {0.0: (0.32, 0.76, 1.02), 7.0: (0.0, 0.83, 1.13), 0.7: (0.10, 0.78, None)}
    measured: dict[str, Estimate | float] = {}
    checks: dict[str, Check] = {}
    for s, (often, std, radius) in published.items():
        x = labelled.sample(d, fl.guide("none") | fl.Descent(energy, s), {}, at, n=4000).x
        found = {
            "overlap": (mean_interval((overlap(x) > 0).double()), often, 0.005),
            "std": (bootstrap(lambda y: y.std(0).mean(), x, resamples=200), std, 0.005),
            "radius": (mean_interval(x.reshape(-1, 2, 2).norm(dim=2).mean(1)), radius, 0.005),
        }
        for name, (value, number, rounding) in found.items():
            measured[f"s = {s:g}, {name}"] = value
            if number is not None:
                checks[f"s = {s:g}, {name}"] = agrees(value, number, rounding)
        measured[f"s = {s:g}, shares"] = share(x)
        checks[f"s = {s:g}, shares"] = share(x) < 0.02
        if s == 0.7:
            measured["s = 0.7, deepest"] = overlap(x).max().item()
            checks["s = 0.7, deepest"] = overlap(x).max().item() < 0.02
    return Finding(measured, checks, nfe=42)
