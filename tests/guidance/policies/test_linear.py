"""LinearAG: the estimate by hand, the fit on trajectories where it is exact, its cost."""

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.policies.linear import regress, truncated
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}


class Isotropic(fl.Denoiser):
    """`N(c, 0.25 I)` with condition, `N(0, 0.25 I)` without."""

    def __init__(self):
        schedule = fl.schedules.VP()
        super().__init__(lambda x, t: x, schedule, "sample", null={"mean": torch.zeros(8)})

    def predict(self, x, level, condition):
        mean = condition["mean"].to(x)
        gain = level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)


def test_the_estimate_by_hand():
    guide = fl.CFG(2.0) | fl.LinearGuidance([0.5, 2.0, -1.0], end=1.0)
    run, schedule = fl.Run(steps=4, check=False), fl.schedules.EDM()
    x = torch.tensor([[6.0]])
    level = {"x": x, "t": 2.0, "schedule": schedule}
    first = {"cond": torch.tensor([[2.0]]), "null": torch.tensor([[4.0]])}  # noises 2 and 1
    assert fl.combine(guide, first, run=run, **level).item() == 0.0
    second = fl.combine(guide, {"cond": torch.tensor([[3.0]])}, run=run, **level)  # noise 1.5
    # 0.5 * 2 + 2 * 1.5 - 1 = 3 is the null's noise, so its clean estimate is 6 - 2 * 3 = 0
    assert second.item() == 0.0 + 2 * 3.0
    assert run.report.entries[-1].provenance == {"cond": "evaluated", "null": "estimated"}


def test_an_estimate_enters_the_history():
    guide = fl.CFG(2.0) | fl.LinearGuidance([0.0, 0.0, 3.0] + [0.0] * 4 + [0.0, 1.0, 0.0], end=1.0)
    run = fl.Run(steps=4, check=False)
    level = {"x": torch.tensor([[0.0]]), "t": 1.0, "schedule": fl.schedules.EDM()}
    given = {"cond": torch.tensor([[1.0]]), "null": torch.tensor([[-1.0]])}  # noises -1 and 1
    out = [fl.combine(guide, given, run=run, **level).item() for _ in range(4)]
    # the null's noise is 1, then estimated as 3, then 1, then as that of step 1, which is 3
    assert out == [-(1 + 2 * (-1 - 1)), -(3 + 2 * (-1 - 3)), 3.0, -(3 + 2 * (-1 - 3))]


def test_fit_is_exact_and_transfers_for_isotropic_gaussians():
    """Predictions then lie in the span of the initial noise and the mean of the condition."""
    d, generator = Isotropic(), torch.Generator().manual_seed(0)
    seen, unseen = (torch.randn(n, 8, generator=generator).double() for n in (20, 5))
    options = {"steps": 20, "sampler": "ddim", "dtype": torch.float64, "shape": (20, 8)}
    policy = fl.fit_linear(d, {"mean": seen}, guide="cfg(7.5)", **options)
    assert len(policy.coefficients) == 3 + 7 + 11 + 15 + 19
    options |= {"shape": (5, 8), "seed": 1}
    full, half, estimated = (
        fl.sample(d, {"mean": unseen}, guide=g, **options)
        for g in (
            "cfg(7.5)",
            fl.CFG(7.5) | fl.LinearGuidance(end=0.5),
            fl.CFG(7.5) | policy,
        )
    )
    assert_close(half.x, estimated.x, rtol=1e-8, atol=1e-8)
    assert [o.nfe[0].item() for o in (full, half, estimated)] == [40, 30, 25]
    whole = fl.LinearGuidance(policy.coefficients, end=1.0)
    assert_close(
        full.x, fl.sample(d, {"mean": unseen}, guide=fl.CFG(7.5) | whole, **options).x,
        rtol=1e-8, atol=1e-8,
    )  # fmt: skip


def test_regression_has_least_norm_on_deficient_designs():
    column = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert truncated(torch.stack([column, column], 1), 4 * column) == pytest.approx([2.0, 2.0])
    cond = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    null = [cond[0], 2 * cond[1] - cond[0], cond[2], 5 * null_of(cond)]
    found = regress(cond, null, end=1.0)
    assert found[:3] == pytest.approx([-0.5, 2.0, -0.5])  # cond[0] and null[0] are one column
    assert len(found) == 10


def null_of(cond):
    return cond[1] + cond[3]


def test_no_coefficients_and_no_end_is_plain():
    options = {"steps": 5, "sampler": "ddim"}
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | linear(end=1)", **options)
    assert torch.equal(out.x, fl.sample(tiny_denoiser(), LABEL, guide="cfg(3)", **options).x)
    assert out.nfe.tolist() == [10, 10]


def test_steps_without_a_whole_history_are_evaluated():
    guide = fl.CFG(3.0) | fl.Interval(0.2, 1.0) | fl.LinearGuidance([0.5, 0.5, 0.0], end=1.0)
    out = fl.sample(tiny_denoiser(), LABEL, guide=guide, steps=5, sampler="ddim")
    assert out.nfe.tolist() == [9, 9]


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"linear: coefficients must be 3 numbers .* got 4"):
        fl.LinearGuidance([0.0] * 4)
    with pytest.raises(ValueError, match=r"linear: serves one branch .* got 'null', 'pag'"):
        fl.guide("cfg(2) + pag(3) | linear()")
    with pytest.raises(ValueError, match="linear: the coefficients are for 20 steps, got 5"):
        fl.sample(tiny_denoiser(), LABEL, guide="cfg(2) | linear(steps=20)", steps=5)
    with pytest.raises(ValueError, match="fit_linear: needs a sampler of one evaluation a step"):
        fl.fit_linear(tiny_denoiser(), LABEL, guide="cfg(2)", sampler="heun")
    with pytest.raises(ValueError, match="does not evaluate 'null' at every step"):
        fl.fit_linear(tiny_denoiser(), LABEL, guide="cfg(2) | interval(0.5, 1)", steps=4)
