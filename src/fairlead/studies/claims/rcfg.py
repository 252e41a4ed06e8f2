"""Claims of residual CFG."""

import math

import torch
from torch import Tensor

import fairlead as fl
from fairlead.exact import GaussianMixture
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel
from fairlead.metrics import Estimate, mean_interval
from fairlead.schedules import Level
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees

N = 2000
MODES = {"self": " | rcfg()", "onetime": " | rcfg('onetime')", "full": ""}
# share of samples that arrive at the target, by scale
PUBLISHED = {
    1.0: (0.10, 0.10, 0.10),
    1.2: (0.68, 0.68, 0.41),
    1.5: (1.00, 1.00, 0.91),
    2.0: (1.00, 1.00, 1.00),
    3.0: (0.93, 1.00, 1.00),
}


def level(lam: float) -> Level:
    """Variance preserving, at a half log-SNR."""
    part = 1 / (1 + math.exp(-2 * lam))
    return Level(lam, math.sqrt(part), math.sqrt(1 - part))


def edit(guide: str, seed: int = 0) -> tuple[Estimate, Estimate, float]:
    """Share that arrives at the second of four classes from the first, distance gone, NFE.

    Two consistency steps: the clean estimate, noised anew to the second level.
    """
    p = GaussianMixture(
        [[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]], 0.16, labels=[0, 1, 2, 3]
    )
    generator = torch.Generator().manual_seed(seed)
    first, second = level(1.4), level(1.7)
    draws = [torch.randn(N, 2, generator=generator).double() for _ in range(3)]
    source = torch.tensor([3.0, 0.0]) + 0.4 * draws[0]
    states = {"label": torch.ones(N, dtype=torch.long)}
    run = fl.Run(seed, range(N), 2, record=False, reference=source)
    model = _model(p, guide, states, run, (first, second))
    x = first.alpha * source + first.sigma * draws[1]
    for at, noise in ((first, None), (second, draws[2])):
        x = x if noise is None else at.alpha * x + at.sigma * noise
        model.begin(at)
        x = model(x, at).denoise
    nfe = float(torch.as_tensor(run.report.nfe).double().mean())
    arrived = (p.responsibilities(x).argmax(1) == 1).double()
    return mean_interval(arrived), mean_interval((x - source).norm(dim=1)), nfe


def _model(
    p: GaussianMixture, guide: str, label: dict[str, Tensor], run: fl.Run, walk: tuple[Level, ...]
) -> GuidedModel:
    evaluator = Evaluator(p.denoiser(exact.OnLevels(levels=walk)), {"cond": fl.Condition(label)})
    return GuidedModel(fl.guide(guide), evaluator, run)


@claim(
    "rcfg",
    ids=("S064",),
    claim="Residual CFG steers an edit at the cost of no or one negative prediction in all.",
    setting="four separate Gaussians, exact denoiser, from noised samples of the first to the "
    f"second in two consistency steps at log(alpha/sigma) = 1.4, 1.7; {N} samples; share of "
    "samples nearest to the second, and distance from the source",
    expected="share at w = 1, 1.2, 1.5, 2, 3: self-negative 0.10, 0.68, 1.00, 1.00, 0.93; onetime "
    "0.10, 0.68, 1.00, 1.00, 1.00; full CFG 0.10, 0.41, 0.91, 1.00, 1.00; 2, 3 and 4 evaluations; "
    "at w = 1.2 more arrive than under full CFG",
)
def mixture() -> Finding:
    """Shares agree with those computed before; cost as said."""
    measured: dict[str, dict[str, object]] = {m: {} for m in MODES}
    checks: dict[str, Check] = {}
    costs = {}
    shares: dict[tuple[str, float], Estimate] = {}
    for w, published in PUBLISHED.items():
        for (mode, rest), share in zip(MODES.items(), published, strict=True):
            arrived, gone, costs[mode] = edit(f"cfg({w}){rest}")
            shares[mode, w] = arrived
            measured[mode][f"w = {w:g}"] = {"share": arrived, "distance": gone}
            checks[f"{mode}, w = {w:g}"] = agrees(arrived, share, 0.005)
    checks["2, 3 and 4 evaluations"] = list(costs.values()) == [2, 3, 4]
    for mode in ("self", "onetime"):
        checks[f"{mode} arrives sooner than full CFG"] = (
            shares[mode, 1.2].low > shares["full", 1.2].high
        )
    return Finding(measured, checks, costs["self"])
