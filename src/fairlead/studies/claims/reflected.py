"""Claims of reflected diffusion."""

import torch

import fairlead as fl
from fairlead.exact import GaussianMixture, ReflectedMixture
from fairlead.metrics import mean_interval
from fairlead.studies.claims._harness import Finding, claim

N, MEANS, LABELS, DEVIATION = 1500, [0.12, 0.35, 0.8], [0, 1, 1], 0.06
# by scale: share of Euclidean samples outside, mean of the reflected ones
PUBLISHED = {1.0: (0.019, 0.124), 3.5: (0.048, 0.095), 8.0: (0.081, 0.086)}


@claim(
    "reflected",
    ids=("S120",),
    claim="Samples of a reflected diffusion never leave the domain, however strong the guidance, "
    "where those of a Euclidean one do.",
    setting="three components on [0, 1], means 0.12 (the class), 0.35 and 0.8, deviation 0.06, "
    "exact scores, sigma log-spaced from 5 to 0.01, 400 steps, 1500 samples, w = 1, 3.5 and 8; the "
    "Euclidean samples are those of the ancestral sampler",
    expected="outside: 1.9 %, 4.8 % and 8.1 % Euclidean, within 2 %, and none reflected; mean of "
    "the reflected samples 0.124, 0.095 and 0.086, within 0.01",
)
def inside() -> Finding:
    """Shares and means agree."""
    schedule = fl.schedules.EDM(0.01, 5.0, spacing="exponential")
    folded = ReflectedMixture(MEANS, DEVIATION, labels=LABELS)
    plain = GaussianMixture(MEANS, DEVIATION**2, labels=LABELS)
    measured, checks = {}, {}
    for w, (outside, mean) in PUBLISHED.items():
        x, y = (
            fl.sample(
                p.denoiser(schedule),
                {"label": torch.zeros(N, dtype=torch.long)},
                guide=f"cfg({w})",
                sampler=sampler,
                steps=400,
                dtype=torch.float64,
                record=False,
            ).x[:, 0]
            for p, sampler in ((plain, "ddpm"), (folded, "reflected"))
        )
        left, left_folded = (mean_interval(((z < 0) | (z > 1)).double()) for z in (x, y))
        measured[f"w = {w:g}"] = {
            "outside, Euclidean": left,
            "outside, reflected": left_folded.value,
            "mean, reflected": mean_interval(y),
        }
        checks[f"Euclidean, w = {w:g}"] = abs(left.value - outside) < 0.02
        checks[f"none outside, w = {w:g}"] = left_folded.value == 0
        checks[f"mean, w = {w:g}"] = abs(y.mean().item() - mean) < 0.01
    return Finding(measured, checks, nfe=800)
