"""CFG-Cache: what is kept, in which space and bands, by hand; its cost; when it is exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.policies.cache import scale_bands
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}
PLAIN = {"low": 1.0, "high": 1.0}


def steps(guide, branches, **options):
    """Results of steps on given pairs of cond and null."""
    run = fl.Run(steps=len(branches), check=False)
    out = [
        fl.combine(guide, {k: torch.tensor([[v]]) for k, v in b.items()}, run=run, **options)
        for b in branches
    ]
    return [o.item() for o in out], [e.provenance["null"] for e in run.report.entries]


def test_the_difference_is_kept_and_added_by_hand():
    guide = fl.CFG(3.0) | fl.Cache(every=3, start=0.0, **PLAIN)
    pairs = [(1.0, 0.0), (2.0, 7.0), (3.0, 1.0), (4.0, 9.0), (5.0, 9.0)]
    out, provenance = steps(guide, [{"cond": c, "null": u} for c, u in pairs])
    # step 1 has nothing to add; step 3 evaluates; c - u is 1 from step 1 and 2 from step 3
    assert out == [3.0, 2 + 2 * 1.0, 7.0, 4 + 2 * 2.0, 5 + 2 * 2.0]
    assert provenance == ["evaluated", "cached", "evaluated", "cached", "cached"]


@pytest.mark.parametrize(("compound", "last"), [(True, 1.21), (False, 1.1)])
def test_factors_compound_over_skipped_steps_unless_told_not_to(compound, last):
    guide = fl.CFG(2.0) | fl.Cache(
        every=4, start=0.0, low=1.1, high=1.1, low_until=1.0, high_from=0.0, compound=compound
    )
    out, _ = steps(guide, [{"cond": 1.0, "null": 0.0}] * 5)
    # evaluated at steps 1 and 4; the difference of 1 is scaled in between, and is 1 anew after
    assert out == pytest.approx([2.0, 1 + 1.1, 1 + last, 2.0, 1 + 1.1])


def test_bands_have_their_own_part_of_the_run():
    cache = fl.Cache(low=2.0, high=3.0, low_until=0.6, high_from=0.4)
    run, seen = fl.Run(steps=5), []
    for _ in range(5):
        run.advance()
        seen.append(cache._factors(fl.Context(None, None, run).fraction))
    assert seen == [(2.0, 1.0), (2.0, 1.0), (2.0, 3.0), (1.0, 3.0), (1.0, 3.0)]


def test_the_difference_is_that_of_the_networks_output():
    """The noise's difference is -alpha/sigma that of the clean estimates."""
    guide = fl.CFG(2.0) | fl.Cache(every=9, start=0.0, space="epsilon", **PLAIN)
    run, schedule = fl.Run(steps=3, check=False), fl.schedules.EDM()
    c, u = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    out = []
    for t in (4.0, 2.0):
        given = {"cond": c, "null": u}
        out.append(fl.combine(guide, given, x=c, t=t, schedule=schedule, run=run).item())
    assert out == [2.0, 1 + 2 / 4]  # what weighed 1/4 at sigma 4 weighs 1/2 at sigma 2


def test_output_means_what_the_network_predicts():
    for prediction, space in [("epsilon", "epsilon"), ("sample", "sample"), ("edm", "output")]:
        d = tiny_denoiser(prediction=prediction)
        a, b = (
            fl.sample(d, LABEL, guide=fl.CFG(3.0) | fl.Cache(space=s), steps=6, sampler="ddim").x
            for s in ("output", space)
        )
        assert torch.equal(a, b)
    d = tiny_denoiser(prediction="edm")
    level = d.schedule.level(2.0)
    ctx = fl.Context(torch.zeros(1, 2, 8, 8), level, fl.Run(), d)
    difference = torch.ones(1, 2, 8, 8)
    x0 = [fl.prediction.to_x0(k * difference, ctx.x, 1.0, 2.0, "edm") for k in (1, 0)]
    assert_close((x0[0] - x0[1]) * fl.Cache()._scale(ctx), difference)


def test_every_one_is_plain_and_costs_what_it_costs():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3) | cache(every=1)", steps=4)
    assert torch.equal(out.x, fl.sample(tiny_denoiser(), LABEL, guide="cfg(3)", steps=4).x)
    out = fl.sample(
        tiny_denoiser(), LABEL, guide="cfg(3) | cache(start=0.18)", steps=50, sampler="ddim"
    )
    assert out.nfe.tolist() == [68, 68]


def test_exact_where_the_difference_is_constant():
    """Gaussians of equal covariance differ by a constant, in x0, at one noise level."""

    class Shift(fl.Denoiser):
        def predict(self, x, level, condition):
            return x / 2 + condition["label"].reshape(-1, 1, 1, 1)

    d = Shift(None, fl.schedules.EDM(), "sample", null={"label": 0}, shape=(1, 4, 4))
    plain, cached = (
        fl.sample(d, LABEL, guide=g, steps=12, sampler="ddim", dtype=torch.float64)
        for g in ("cfg(3)", fl.CFG(3.0) | fl.Cache(start=0.0, **PLAIN))
    )
    assert_close(plain.x, cached.x, rtol=1e-12, atol=1e-12)
    assert cached.nfe[0] < plain.nfe[0]


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=25)
@given(sizes, st.floats(0, 1), st.integers(0, 99))
def test_bands_add_up_and_scale(size, radius, key):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(key)).double()
    low, high = scale_bands(x, 1.0, 0.0, radius), scale_bands(x, 0.0, 1.0, radius)
    assert_close(low + high, x, rtol=1e-12, atol=1e-12)
    assert_close(scale_bands(x, 2.0, 3.0, radius), 2 * low + 3 * high, rtol=1e-12, atol=1e-12)
    if min(size) * radius < 1:  # the mean alone is low
        assert_close(low, x.mean((-2, -1), keepdim=True).expand_as(x), rtol=1e-12, atol=1e-12)


def test_a_wave_on_the_rim_of_the_disk_is_low():
    line = torch.arange(10) / 10 * 2 * torch.pi
    for cycles, kept in [(2, 1.0), (3, 0.0)]:  # a fifth of ten is two
        wave = (cycles * line).cos().double().expand(1, 1, 10, 10)
        assert_close(scale_bands(wave, 1.0, 0.0, 0.2), kept * wave, rtol=1e-6, atol=1e-6)


def test_videos_are_transformed_frame_by_frame():
    x = torch.randn(1, 2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    whole = scale_bands(x, 1.2, 0.9, 0.3)
    assert_close(whole[:, :, 1], scale_bands(x[:, :, 1], 1.2, 0.9, 0.3))


def test_only_the_named_branches_are_cached():
    guide = fl.guide("cfg(3) + pag(2) | cache(start=0, only=['pag'])")
    out = fl.sample(tiny_denoiser(), LABEL, guide=guide, steps=3, sampler="ddim")
    assert [list(e.provenance.values()) for e in out.report.entries] == [
        ["evaluated"] * 3,
        ["evaluated", "evaluated", "cached"],
        ["evaluated", "evaluated", "cached"],
    ]


def test_rows_that_were_never_evaluated_are():
    """A sample whose guidance begins later has nothing cached, and evaluates the branch."""
    d = fl.exact.GaussianMixture([[-1.0], [1.0]], 0.1, labels=[0, 1]).denoiser(fl.schedules.EDM())
    guide = fl.CFG(3.0) | fl.Cache(start=0.0, **PLAIN)
    run = fl.Run(0, range(2), 4)
    model = _model(guide, d, run)
    for weights, spent in [((3.0, 1.0), [2, 1]), ((3.0, 3.0), [4, 3]), ((3.0, 3.0), [5, 4])]:
        model.guide, level = fl.CFG(weights) | guide.right, d.schedule.level(1.0)
        model.begin(level)
        model(torch.zeros(2, 1), level)
        assert run.report.nfe.tolist() == spent


def _model(guide, denoiser, run):
    from fairlead.guidance.evaluator import Evaluator
    from fairlead.guidance.guided import GuidedModel

    return GuidedModel(guide, Evaluator(denoiser, {"cond": fl.Condition({"label": [0, 1]})}), run)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="cache: only names the base branch 'cond'"):
        fl.Cache(only=("cond",))
    with pytest.raises(ValueError, match=r"cache: only names 'nul', .* did you mean 'null'"):
        fl.CFG(3.0) | fl.Cache(only=("nul",))
    with pytest.raises(ValueError, match=r"cache: every must be a whole number, got 2\.5"):
        fl.Cache(every=2.5)
    with pytest.raises(ValueError, match="cache: space must be one of"):
        fl.Cache(space="x")
    run = fl.Run(steps=20, check=False)
    given = {"cond": torch.ones(1, 1), "null": torch.zeros(1, 1)}
    with pytest.raises(ValueError, match=r"cache: frequency bands need .* got 1; low=1, high=1"):
        fl.combine(fl.CFG(2.0) | fl.Cache(), given, run=run)  # at the first step
