"""Claims of LinearAG."""

import torch
from torch import Tensor

import fairlead as fl
from fairlead.condition import Condition
from fairlead.exact import GaussianMixture
from fairlead.schedules import Level, NoiseSchedule
from fairlead.studies.claims import _exact as exact
from fairlead.studies.claims._harness import Finding, claim
from fairlead.studies.claims._verdict import Check
from fairlead.studies.claims.adaptive import levels, rmse


class Isotropic(fl.Denoiser):
    """`N(c, 0.25 I)` under the condition `c` and `N(0, 0.25 I)` without, exactly."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        null = {"mean": torch.zeros(8, dtype=torch.float64)}
        super().__init__(lambda x, t: x, schedule, "sample", null=null)

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The posterior mean."""
        mean = condition["mean"].to(x)
        gain = level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)


@claim(
    "linear",
    ids=("S014",),
    claim="Half of the null predictions of the first half of the steps can be estimated linearly "
    "from past ones, without any in the second half: 25 evaluations instead of 40.",
    setting="20 DDIM steps uniform in log(alpha/sigma) from -4 to 4. (a) isotropic Gaussians in 8 "
    "dimensions that differ by their mean, w = 7.5, fitted on 20 conditions, tested on 100 others; "
    "(b) four separate Gaussians, w = 3, fitted on 200 samples of all classes, tested on 1000 "
    "others of one class, RMSE to plain CFG from the same noise, seeds 0 and 1",
    expected="(a) estimates that change the samples by less than 1e-9; (b) 25 evaluations, and "
    "closer to CFG of 20 steps than CFG of 13 steps, which cost 26",
    seed=[0, 1],
)
def linear() -> Finding:
    """Exact where it can be, cheaper as said, and better than fewer steps at equal cost."""
    d = Isotropic(exact.OnLevels(levels=levels(20)))
    generator = torch.Generator().manual_seed(0)
    seen, unseen = (torch.randn(n, 8, generator=generator).double() for n in (20, 100))
    options = {"sampler": "ddim", "steps": 20, "dtype": torch.float64}
    policy = fl.fit_linear(d, {"mean": seen}, guide="cfg(7.5)", shape=(20, 8), end=1.0, **options)
    estimated, full = (
        fl.sample(d, {"mean": unseen}, guide=g, shape=(100, 8), seed=1, **options).x
        for g in (fl.CFG(7.5) | policy, "cfg(7.5)")
    )
    gaussians = rmse(estimated, full)

    p = GaussianMixture(
        [[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]], 0.16, labels=[0, 1, 2, 3]
    )
    schedule = exact.OnLevels(levels=levels(20))
    label = {"label": torch.arange(200) % 4}
    fitted = fl.fit_linear(p.denoiser(schedule), label, guide="cfg(3.0)", seed=2, **options)
    errors: dict[str, list[float]] = {"linear": [], "conditional half": [], "13 steps": []}
    nfe = 0.0
    for seed in (0, 1):
        whole = exact.sample(p, schedule, "cfg(3.0)", 20, n=1000, seed=seed).x
        cheap = exact.sample(p, schedule, fl.CFG(3.0) | fitted, 20, n=1000, seed=seed)
        half = exact.sample(p, schedule, "cfg(3.0) | linear()", 20, n=1000, seed=seed)
        fewer = exact.sample(
            p, exact.OnLevels(levels=levels(13)), "cfg(3.0)", 13, n=1000, seed=seed
        )
        nfe = cheap.nfe.double().mean().item()
        for name, run in (("linear", cheap), ("conditional half", half), ("13 steps", fewer)):
            errors[name].append(rmse(run.x, whole))
    checks: dict[str, Check] = {
        "exact for isotropic Gaussians": gaussians < 1e-9,
        "25 evaluations": nfe == 25,
        "beats fewer steps": all(
            a < b for a, b in zip(errors["linear"], errors["13 steps"], strict=True)
        ),
    }
    return Finding({"RMSE, Gaussians": gaussians, **errors}, checks, nfe)
