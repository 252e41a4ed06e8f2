"""Every training-free guide against the exact posterior of linear measurements of a mixture.

`python -m benchmarks.posterior` writes `docs/energy_posterior.csv`: bias of mean and covariance
and sliced Wasserstein distance, over noise levels and ill-conditioning, with the cost.
"""

import csv
from pathlib import Path

import torch

import fairlead as fl
from fairlead.energy import Linear
from fairlead.exact import GaussianMixture, energy_distance, sliced_wasserstein
from fairlead.schedules import VP

TARGET = Path(__file__).parents[1] / "docs" / "energy_posterior.csv"
N, STEPS, SAMPLER = 1000, 40, "ddim(eta=1.0)"
NOISES, CONDITIONS = (0.1, 0.5), (1.0, 10.0, 100.0)
TUNED = (0.5, 1.0)  # noise and condition number at which the scale of each method is chosen


def mixture() -> GaussianMixture:
    """Four components in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    means = 1.5 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, 0.36)


def operator(condition: float) -> torch.Tensor:
    """Two measurements of four numbers, singular values 1 and 1 / condition."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=torch.float64))[0].mT
    return torch.tensor([[1.0], [1 / condition]], dtype=torch.float64) * rows


# the guide at a scale and noise level, its scales, and how often each step is taken; steps at the
# estimate are in units of the data, so they follow the variance of the noise
METHODS = {
    "classifier_guidance (network)": (lambda e, k, s: fl.ClassifierGuidance(e, k), (0.3, 1, 2), 1),
    "classifier_guidance (estimate)": (
        lambda e, k, s: fl.ClassifierGuidance(e, k, point="estimate"),
        (0.03, 0.1, 0.3),
        1,
    ),
    "dps": (lambda e, k, s: fl.DPS(e, k * s), (0.05, 0.2, 0.5), 1),
    "lgd (8 draws)": (lambda e, k, s: fl.LGD(e, k * s**2, samples=8), (0.1, 0.3, 1), 1),
    "mpgd": (lambda e, k, s: fl.MPGD(e, k * s**2), (0.05, 0.1, 0.3), 1),
    "freedom": (lambda e, k, s: fl.FreeDoM(e, k * s**2), (0.05, 0.1, 0.3), 1),
    "freedom, 3 times": (lambda e, k, s: fl.FreeDoM(e, k * s**2), (0.05, 0.1, 0.3), 3),
    "ugd": (lambda e, k, s: fl.UGD(e, k), (0.3, 1, 2), 1),
    "ugd, 3 times": (lambda e, k, s: fl.UGD(e, k), (0.3, 1, 2), 3),
    "tfg": (
        lambda e, k, s: fl.TFG(e, rho=k * s**2, mu=k * s**2, iterations=2),
        (0.03, 0.1, 0.3),
        1,
    ),
    "flowchef": (lambda e, k, s: fl.FlowChef(e, k * s**2), (0.03, 0.1, 0.3), 1),
    "dreamguider": (lambda e, k, s: fl.Dreamguider(e, k), (0.3, 1, 3), 1),
}


def run(guide: object, times: int) -> tuple[torch.Tensor, fl.Result]:
    sampler = SAMPLER if times == 1 else f"recurrence({SAMPLER!r}, times={times})"
    out = fl.sample(
        mixture().denoiser(VP()),
        guide=guide,
        sampler=sampler,
        steps=STEPS,
        n=N,
        dtype=torch.float64,
        record=False,
        check=False,
    )
    return out.x, out


def measure(
    x: torch.Tensor, posterior: GaussianMixture, truth: torch.Tensor, out: fl.Result | None
) -> list[object]:
    """Bias of mean and covariance, sliced Wasserstein distance, and the cost."""
    mean, cov = posterior.moments()
    sick = not bool(x.isfinite().all()) or bool(x.abs().max() > 1e6)
    bias = (x.mean(0) - mean).norm().item()
    spread = ((x.T.cov() - cov).norm() / cov.norm()).item()
    far = float("inf") if sick else sliced_wasserstein(x, truth, resamples=2).value
    report = out and out.report
    cost = (int(out.nfe[0]), report.backwards, report.gradients) if out and report else (0, 0, 0)
    return [*(f"{v:.3f}" if abs(v) < 1e3 else "diverged" for v in (bias, spread, far)), *cost]


def main() -> None:
    p = mixture()
    truth_x = p.sample(1, generator=torch.Generator().manual_seed(2))[0]
    chosen: dict[str, float] = {}
    rows = []
    settings = sorted(((s, c) for s in NOISES for c in CONDITIONS), key=lambda sc: sc != TUNED)
    for noise, condition in settings:
        A = operator(condition)
        generator = torch.Generator().manual_seed(3)
        y = A @ truth_x + noise * torch.randn(2, generator=generator, dtype=torch.float64)
        posterior = p.given(A, y, noise)
        truth = posterior.sample(N, generator=generator)
        energy = Linear(A, y, noise)

        found = [("exact samples", posterior.sample(N, generator=generator), None)]
        found.append(("no guidance", *run("none", 1)))
        for name, (make, scales, times) in METHODS.items():
            if name not in chosen:
                tried = {}
                for k in scales:
                    x = run(make(energy, k, noise), times)[0]
                    good = bool(x.isfinite().all()) and x.abs().max() < 1e6
                    tried[k] = energy_distance(x, truth, resamples=2).value if good else 1e9
                chosen[name] = min(tried, key=tried.__getitem__)
            found.append((name, *run(make(energy, chosen[name], noise), times)))
        for name, x, out in found:
            row = [name, noise, condition, chosen.get(name, "")]
            rows.append([*row, *measure(x, posterior, truth, out)])
            print(*rows[-1], sep="  ", flush=True)
    head = ["guide", "noise", "condition", "scale", "bias of the mean", "bias of the covariance",
            "sliced W2", "NFE", "backwards", "gradients"]  # fmt: skip
    with TARGET.open("w", newline="") as file:
        csv.writer(file).writerows([head, *sorted(rows, key=lambda r: (r[1], r[2]))])


if __name__ == "__main__":
    main()
