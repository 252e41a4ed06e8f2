"""Claims of sums of single directions."""

import torch

import fairlead as fl
from fairlead import recipes
from fairlead.exact import GaussianMixture, LabelledMixture
from fairlead.metrics import Estimate, bootstrap, mean_interval
from fairlead.schedules import Level
from fairlead.studies.claims import _labelled as labelled
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check, agrees, equals

AT = labelled.levels(-4, 4, 60)
N = 1500


@claim(
    "independent",
    ids=("S083", "S059"),
    claim="Adding the directions of single conditions equals the joint condition where the "
    "conditions are independent, and counts twice what they share where they are not.",
    setting="2 x 2 grid of Gaussians at +-1, std 0.5, joint [[0.45, 0.05], [0.05, 0.45]] or "
    "uniform, exact denoiser; 60 DDIM steps on lam -4..4, 1500 samples from the same noise, "
    "weights 1",
    expected="cell (1, 1): mean 1.19, std 0.43 against 0.99, 0.48 of the joint condition, gap "
    "0.22; below 1e-12 for the uniform joint; unlikely cell (1, 0): 71 % of samples inside",
)
def independent() -> Finding:
    """Each number agrees, with the standard error of as many samples."""
    guide = recipes.independent(["row", "column"], [1, 1])
    measured: dict[str, float | Estimate] = {}
    checks: dict[str, Check] = {}
    for name, same in (("correlated", 0.45), ("uniform", 0.25)):
        d = labelled.grid(same).denoiser(fl.schedules.VP())
        apart, joint = (
            labelled.sample(d, g, {"row": 1, "column": 1}, AT, n=N).x for g in (guide, "none")
        )
        gap = (apart - joint).square().mean().sqrt().item()
        measured[f"{name}, gap"] = gap
        if name == "uniform":
            checks["uniform, gap"] = gap < 1e-12
            continue
        checks["correlated, gap"] = equals(gap, 0.22, 0.005)
        for form, x, mean, std in (("sum", apart, 1.19, 0.43), ("joint", joint, 0.99, 0.48)):
            measured[f"{form}, mean"] = labelled.mean(x, 0)
            measured[f"{form}, std"] = bootstrap(lambda y: y[:, 0].std(), x, resamples=200)
            checks[f"{form}, mean"] = agrees(labelled.mean(x, 0), mean, 0.005)
            checks[f"{form}, std"] = agrees(measured[f"{form}, std"], std, 0.005)  # type: ignore[arg-type]
        x = labelled.sample(d, guide, {"row": 1, "column": 0}, AT, n=N).x
        inside = mean_interval(((x[:, 0] > 0) & (x[:, 1] < 0)).double())
        measured["unlikely cell, share inside"] = inside
        checks["unlikely cell"] = agrees(inside, 0.71, 0.005)
    return Finding(measured, checks, nfe=180)


@claim(
    "dual",
    ids=("S063",),
    claim="Directions of single conditions added to the full prediction are joint CFG where the "
    "conditions are independent.",
    setting="2 x 2 grid of Gaussians at +-1, std 0.5, uniform or joint [[0.45, 0.05], [0.05, "
    "0.45]], exact denoiser; predictions at sigma 0.1, 1, 3 on a grid on [-4, 4]^2, increments 2 "
    "and 2 against w = 3",
    expected="difference below 1e-12 for the uniform joint, above 0.05 at sigma 1 for the other",
)
def dual() -> Finding:
    """Equality to rounding in the one case, and the largest difference in the other."""
    x = torch.cartesian_prod(*[torch.linspace(-4, 4, 41, dtype=torch.float64)] * 2)
    guide = recipes.dual(["row", "column"], [2.0, 2.0])
    measured: dict[str, float] = {}
    for name, same in (("uniform", 0.25), ("correlated", 0.45)):
        p = labelled.grid(same)
        for sigma in (0.1, 1.0, 3.0):
            level = Level(sigma, 1.0, sigma)
            asked = {
                "cond": {"row": 1, "column": 1},
                "row": {"row": 1},
                "column": {"column": 1},
                "none": {},
            }
            v = {k: p.x0(x, level, c) for k, c in asked.items()}
            joint = fl.combine("cfg(3)", {"cond": v["cond"], "null": v["none"]})
            gap = (fl.combine(guide, v) - joint).abs().max().item()
            measured[f"{name}, sigma {sigma:g}"] = gap
    checks: dict[str, Check] = {
        "uniform": max(v for k, v in measured.items() if k.startswith("uniform")) < 1e-12,
        "correlated": measured["correlated, sigma 1"] > 0.05,
    }
    return Finding(measured, checks)


@claim(
    "compose",
    ids=("XM2",),
    claim="Composition generates combinations that the model never saw together.",
    setting="2 x 2 grid of Gaussians at +-1, std 0.5, without the cell (1, 1) in the data, exact "
    "denoiser that knows row and column alone; 60 DDIM steps, 1500 samples, AND at weights 1 and "
    "2; row 1 AND NOT column 0 at weights 2 and -1",
    expected="a share above 0.5 of the samples in the missing cell under AND at weights 2, where "
    "the data has below 0.03; NOT lowers the share of column 0",
)
def compose() -> Finding:
    """Shares of the missing cell."""
    cells = [(0, 0), (0, 1), (1, 0)]
    means = [[2.0 * r - 1, 2.0 * c - 1] for r, c in cells]
    # one condition whose values are the concepts: row 1 is 0, column 1 is 1, column 0 is 2
    parts = [([means[2]], 0), ([means[1]], 1), ([means[0], means[2]], 2)]
    d = _concepts(means, parts)
    shares: dict[str, Estimate] = {}

    def drawn(guide: str | fl.Guide) -> torch.Tensor:
        states = {k: {"concept": torch.tensor(i)} for i, k in enumerate(("row", "column", "not"))}
        return labelled.sample(d, guide, {"concept": 0}, AT, n=N, states=states).x

    def share(x: torch.Tensor) -> Estimate:
        return mean_interval(((x[:, 0] > 0) & (x[:, 1] > 0)).double())

    for w in (1.0, 2.0):
        shares[f"AND, {w:g}"] = share(drawn(recipes.compose("concept", ["row", "column"], [w, w])))
    shares["row alone"] = share(drawn(recipes.compose("concept", ["row"], [1.0])))
    x = drawn(recipes.compose("concept", ["row", "not"], [2.0, -1.0]))
    shares["AND NOT, column above 0"] = mean_interval((x[:, 1] > 0).double())
    x = drawn(recipes.compose("concept", ["row"], [2.0]))
    shares["row at 2, column above 0"] = mean_interval((x[:, 1] > 0).double())
    checks: dict[str, Check] = {
        "AND finds the missing cell": shares["AND, 2"].low > 0.5,
        "the data does not have it": shares["row alone"].high < 0.03,
        "NOT avoids": shares["AND NOT, column above 0"].low
        > shares["row at 2, column above 0"].high,
    }
    return Finding(shares, checks, nfe=180)


class _Concepts(LabelledMixture):
    """A mixture whose concepts overlap: each has its own components among all."""

    def __init__(self, means: list[list[float]], members: list[list[int]]) -> None:
        super().__init__(means, 0.25, {"concept": [0, 1, 2]})
        rows = [torch.ones(len(means))]
        rows += [torch.tensor([float(k in own) for k in range(len(means))]) for own in members]
        self._log_weights = torch.stack([r / r.sum() for r in rows]).double().log()


def _concepts(
    means: list[list[float]], parts: list[tuple[list[list[float]], int]]
) -> fl.exact.LabelledDenoiser:
    members = [[means.index(m) for m in own] for own, _ in parts]
    return _Concepts(means, members).denoiser(fl.schedules.VP())


@claim(
    "style_mix",
    ids=("S050",),
    claim="Between two styles the result is a mixture, outside them an exaggeration, linear in "
    "gamma.",
    setting="two Gaussians at (1.5, 0.5) and (-1, 0), std 0.5, exact denoiser; 40 DDIM steps on "
    "lam -4..4 (levels set after an earlier run), 4000 samples, gamma -1, 0.5, 2",
    expected="means (-3.47, -0.50), (0.25, 0.25), (3.96, 0.99); std 0.478 throughout",
)
def style_mix() -> Finding:
    """Each mean and deviation agrees."""
    p = LabelledMixture([[1.5, 0.5], [-1.0, 0.0]], 0.25, {"style": [0, 1]})
    d, at = p.denoiser(fl.schedules.VP()), labelled.levels(-4, 4, 40)
    states = {"a": {"style": torch.tensor(0)}, "b": {"style": torch.tensor(1)}}
    measured: dict[str, Estimate] = {}
    checks: dict[str, Check] = {}
    for gamma, mean in {-1.0: (-3.47, -0.50), 0.5: (0.25, 0.25), 2.0: (3.96, 0.99)}.items():
        guide = recipes.style_mix("style", "a", "b", gamma)
        x = labelled.sample(d, guide, {"style": 0}, at, n=4000, states=states).x
        for i in range(2):
            key = f"gamma {gamma:g}, mean {i}"
            measured[key] = labelled.mean(x, i)
            checks[key] = agrees(measured[key], mean[i], 0.005)
        key = f"gamma {gamma:g}, std"
        measured[key] = bootstrap(lambda y: y.std(0).mean(), x, resamples=200)
        checks[key] = agrees(measured[key], 0.478, 0.0005)
    return Finding(measured, checks, nfe=80)


@claim(
    "experts",
    ids=("S081",),
    claim="Weights that combine two models give the product of experts; at finite noise, away from "
    "the product by a bias that is large.",
    setting="experts N(-1, 0.25) and N(2, 1), base N(0, 9) (variances), alpha = 1, sigma 80 to "
    "1e-3 in equal steps of log sigma, 4000 DDIM steps, mean and variance of the affine chain "
    "without sampling; tolerances were made tighter after a first look",
    expected="mean, variance at (0.5, 0.5) 0.157, 0.499, at (1, 1) 0.044, 0.028, at (0.25, 1) "
    "1.216, 0.408; products -0.4, 0.4; -0.409, 0.205; 0.507, 0.507; score at sigma 1e-4 that of "
    "the product to 3e-7",
)
def experts() -> Finding:
    """Each number to a unit of its last digit; the step sizes were not published."""
    base = GaussianMixture([[0.0]], 9.0).denoiser(fl.schedules.EDM())
    models = {
        "one": GaussianMixture([[-1.0]], 0.25).denoiser(fl.schedules.EDM()),
        "two": GaussianMixture([[2.0]], 1.0).denoiser(fl.schedules.EDM()),
    }
    sigmas = torch.logspace(
        torch.tensor(80.0).log10().item(), -3, 4001, dtype=torch.float64
    ).tolist()
    at = [Level(s, 1.0, s) for s in sigmas]
    measured: dict[str, list[float]] = {}
    checks: dict[str, Check] = {}
    numbers = {
        (0.5, 0.5): (0.157, 0.499),
        (1.0, 1.0): (0.044, 0.028),
        (0.25, 1.0): (1.216, 0.408),
    }
    for weights, (mean, variance) in numbers.items():
        guide = recipes.experts(["label"], ["one: label", "two: label"], list(weights))
        x = torch.tensor([[0.0], [80.0]], dtype=torch.float64)
        condition = {"label": torch.zeros(2, dtype=torch.long)}
        out = labelled.sample(base, guide, condition, at, n=2, x=x, models=models).x.flatten()
        found = [out[0].item(), (out[1] - out[0]).item() ** 2]
        key = f"weights {weights[0]:g}, {weights[1]:g}: mean, variance"
        measured[key] = found
        checks[key] = equals(found[0], mean, 0.001) and equals(found[1], variance, 0.001)
        error = _product_error(weights)
        measured[f"weights {weights[0]:g}, {weights[1]:g}: score error"] = [error]
        checks[f"weights {weights[0]:g}, {weights[1]:g}: score"] = error < 3.5e-7
    return Finding(measured, checks, nfe=12000)


def _product_error(weights: tuple[float, float]) -> float:
    """Largest error of the composed score at sigma 1e-4 against that of the product, on [-1, 1]."""
    x, level = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None], Level(1e-4, 1.0, 1e-4)
    parts = {"one: label": (-1.0, 0.25), "two: label": (2.0, 1.0), "none": (0.0, 9.0)}
    v = {k: GaussianMixture([[m]], s).x0(x, level) for k, (m, s) in parts.items()}
    guide = recipes.experts(["label"], ["one: label", "two: label"], list(weights))
    composed = (fl.combine(guide, {**v, "cond": v["none"]}) - x) / level.sigma**2
    shares = dict(zip(parts, (*weights, 1 - sum(weights)), strict=True))
    exact = torch.stack([w * (parts[k][0] - x) / parts[k][1] for k, w in shares.items()]).sum(0)
    return (composed - exact).abs().max().item()
