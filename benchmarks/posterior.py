"""Every training-free guide against the exact posterior of linear measurements of a mixture.

`python -m benchmarks.posterior` writes `docs/energy_posterior.csv`: bias of mean and covariance
and sliced Wasserstein distance, over noise levels and ill-conditioning, with the cost. Rows that
are there are kept; delete the file to make them anew.
"""

import csv
from collections.abc import Callable
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


THRICE = f"recurrence({SAMPLER!r}, times=3)"
PARTICLES = "steering(l=1.0, potential='difference', every=1, start=0, adaptive=True, sampler={!r})"
Make = Callable[[Linear, float, float], object]

# the guide at a scale and noise level, its scales, and the sampler; steps at the estimate are in
# units of the data, so they follow the variance of the noise
METHODS: dict[str, tuple[Make, tuple[float, ...], str]] = {
    "classifier_guidance (network)": (
        lambda e, k, s: fl.ClassifierGuidance(e, k),
        (0.3, 1, 2),
        SAMPLER,
    ),
    "classifier_guidance (estimate)": (
        lambda e, k, s: fl.ClassifierGuidance(e, k, point="estimate"),
        (0.03, 0.1, 0.3),
        SAMPLER,
    ),
    "norm_guidance": (lambda e, k, s: fl.NormGuidance(e, k), (0.1, 0.3, 1), SAMPLER),
    "elucd": (lambda e, k, s: fl.EluCD(e, k, clip=None), (0.1, 0.3, 1), "ddpm"),
    "dps": (lambda e, k, s: fl.DPS(e, k * s), (0.05, 0.2, 0.5), SAMPLER),
    "lgd (8 draws)": (lambda e, k, s: fl.LGD(e, k * s**2, samples=8), (0.1, 0.3, 1), SAMPLER),
    "mpgd": (lambda e, k, s: fl.MPGD(e, k * s**2), (0.05, 0.1, 0.3), SAMPLER),
    "freedom": (lambda e, k, s: fl.FreeDoM(e, k * s**2), (0.05, 0.1, 0.3), SAMPLER),
    "freedom, 3 times": (lambda e, k, s: fl.FreeDoM(e, k * s**2), (0.05, 0.1, 0.3), THRICE),
    "ugd": (lambda e, k, s: fl.UGD(e, k), (0.3, 1, 2), SAMPLER),
    "ugd, 3 times": (lambda e, k, s: fl.UGD(e, k), (0.3, 1, 2), THRICE),
    "tfg": (
        lambda e, k, s: fl.TFG(e, rho=k * s**2, mu=k * s**2, iterations=2),
        (0.03, 0.1, 0.3),
        SAMPLER,
    ),
    "tfg (rho alone)": (
        lambda e, k, s: fl.TFG(e, rho=k * s**2, mu=0.0),
        (0.03, 0.1, 0.3),
        SAMPLER,
    ),
    "tfg (mu alone)": (
        lambda e, k, s: fl.TFG(e, rho=0.0, mu=k * s**2, iterations=2),
        (0.03, 0.1, 0.3),
        SAMPLER,
    ),
    "tfg (4 draws, gamma 0.3)": (
        lambda e, k, s: fl.TFG(e, rho=k * s**2, mu=k * s**2, iterations=2, gamma=0.3, samples=4),
        (0.03, 0.1, 0.3),
        SAMPLER,
    ),
    "tfg, 3 times": (
        lambda e, k, s: fl.TFG(e, rho=k * s**2, mu=k * s**2, iterations=2),
        (0.03, 0.1, 0.3),
        THRICE,
    ),
    "flowchef": (lambda e, k, s: fl.FlowChef(e, k * s**2), (0.03, 0.1, 0.3), SAMPLER),
    "dreamguider": (lambda e, k, s: fl.Dreamguider(e, k), (0.3, 1, 3), SAMPLER),
    # these draw instead of moving; the energy is minus a log-likelihood, so 1 is right
    "svdd (8 proposals)": (
        lambda e, k, s: "none",
        (1,),
        f"svdd(m=8, lam=1.0, sampler={SAMPLER!r})",
    ),
    "svdd (32)": (lambda e, k, s: "none", (1,), f"svdd(m=32, lam=1.0, sampler={SAMPLER!r})"),
    "steering (1,000 particles)": (lambda e, k, s: "none", (1,), PARTICLES.format(SAMPLER)),
}


def run(guide: object, sampler: str, energy: Linear) -> tuple[torch.Tensor, fl.Result]:
    out = fl.sample(
        mixture().denoiser(VP()),
        guide=guide,
        sampler=sampler,
        steps=STEPS,
        n=N,
        rewards={"reward": lambda x: -energy(x)},
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
    kept: dict[tuple[str, ...], list[object]] = {}
    if TARGET.exists():
        with TARGET.open(newline="") as file:
            kept = {tuple(row[:3]): list(row) for row in list(csv.reader(file))[1:]}
    names = ["exact samples", "no guidance", *METHODS]
    chosen = {str(k[0]): float(str(row[3])) for k, row in kept.items() if row[3]}
    settings = sorted(((s, c) for s in NOISES for c in CONDITIONS), key=lambda sc: sc != TUNED)
    for noise, condition in settings:
        A = operator(condition)
        generator = torch.Generator().manual_seed(3)
        y = A @ truth_x + noise * torch.randn(2, generator=generator, dtype=torch.float64)
        posterior = p.given(A, y, noise)
        truth = posterior.sample(N, generator=generator)
        again = posterior.sample(N, generator=generator)
        energy = Linear(A, y, noise)
        for name in names:
            key = (name, str(noise), str(condition))
            if key in kept:
                continue
            if name == "exact samples":
                found: tuple[torch.Tensor, fl.Result | None] = again, None
            elif name == "no guidance":
                found = run("none", SAMPLER, energy)
            else:
                make, scales, sampler = METHODS[name]
                if name not in chosen:
                    tried = {}
                    for k in scales:
                        x = run(make(energy, k, noise), sampler, energy)[0]
                        good = bool(x.isfinite().all()) and bool(x.abs().max() < 1e6)
                        far = energy_distance(x, truth, resamples=2).value if good else 1e9
                        tried[k] = far
                    chosen[name] = min(tried, key=tried.__getitem__)
                found = run(make(energy, chosen[name], noise), sampler, energy)
            scale = f"{chosen[name]:g}" if name in chosen else ""
            kept[key] = [*key, scale, *measure(found[0], posterior, truth, found[1])]
            print(*kept[key], sep="  ", flush=True)
            write(kept, names)


def write(kept: dict[tuple[str, ...], list[object]], names: list[str]) -> None:
    """Rows by setting, then in the order of the methods."""
    head = ["guide", "noise", "condition", "scale", "bias of the mean", "bias of the covariance",
            "sliced W2", "NFE", "backwards", "gradients"]  # fmt: skip
    rows = sorted(
        (row for key, row in kept.items() if key[0] in names),
        key=lambda r: (float(str(r[1])), float(str(r[2])), names.index(str(r[0]))),
    )
    with TARGET.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


if __name__ == "__main__":
    main()
