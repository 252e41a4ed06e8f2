"""`fl.sample`: seeds, batches, callbacks, interrupts, and an error for every bad input."""

import math

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5]}


def test_result():
    out = fl.sample(tiny_denoiser(), LABEL, guide="cfg(3)", steps=3)
    assert out.x.shape == (2, 2, 8, 8)
    assert out.nfe.tolist() == [10, 10]
    assert out.level.sigma == 0
    assert len(out.report.entries) == 5
    assert out.guide == fl.CFG(3.0)


def test_one_value_for_all_samples_and_default_sizes():
    one = fl.sample(tiny_denoiser(), {"label": 3}, n=2, steps=2)
    assert_close(one.x, fl.sample(tiny_denoiser(), {"label": [3, 3]}, steps=2).x)
    assert fl.sample(tiny_denoiser(), {"label": 3}, steps=2).x.shape[0] == 1
    assert fl.sample(tiny_denoiser(), {"label": 3}, shape=(2, 2, 8, 8), steps=2).x.shape[0] == 2


@pytest.mark.parametrize("sampler", ["heun", "ddim", "ddim(eta=1)", "heun(churn=10)"])
def test_a_sample_depends_on_seed_and_index_alone(sampler):
    options = {"guide": "cfg(3) + icg(2)", "sampler": sampler, "steps": 3, "dtype": torch.float64}
    d = tiny_denoiser(dtype=torch.float64)
    whole = fl.sample(d, {"label": [1, 2, 3]}, seed=4, **options).x
    for i in range(3):
        alone = fl.sample(d, {"label": [i + 1]}, seed=4, first=i, **options).x
        assert_close(whole[i : i + 1], alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(whole, fl.sample(d, {"label": [1, 2, 3]}, seed=5, **options).x)


def test_start_is_used_as_it_is():
    d = tiny_denoiser()
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    level = d.schedule.grid(1)[0]
    out = fl.sample(d, LABEL, x=x, steps=1, sampler="ddim")
    assert_close(out.x, d(x, level, LABEL))


def test_callback_sees_every_step():
    seen = []
    out = fl.sample(tiny_denoiser(), LABEL, steps=3, callback=seen.append)
    assert [s.index for s in seen] == [0, 1, 2]
    assert [s.steps for s in seen] == [3, 3, 3]
    assert seen[-1].level.sigma == 0
    assert torch.equal(seen[-1].x, out.x)
    assert seen[0].denoised.shape == out.x.shape


def test_progress_bar_changes_nothing():
    shown = fl.sample(tiny_denoiser(), LABEL, steps=2, progress=True).x
    assert torch.equal(shown, fl.sample(tiny_denoiser(), LABEL, steps=2).x)


def test_interrupt_keeps_what_there_was():
    def stop(step):
        if step.index == 1:
            kept.append(step)
            raise KeyboardInterrupt

    kept, d = [], tiny_denoiser()
    with pytest.raises(fl.Interrupted, match="interrupted at t =") as caught:
        fl.sample(d, LABEL, guide="cfg(3) + pag(2)", steps=4, sampler="ddim", callback=stop)
    result = caught.value.result
    assert torch.equal(result.x, kept[0].x)
    assert result.level == kept[0].level
    assert result.nfe.tolist() == [6, 6]
    assert isinstance(caught.value, KeyboardInterrupt)
    assert not any(m._forward_hooks for m in d.network.modules())


def test_interrupt_inside_the_network():
    d = tiny_denoiser()

    def stop(call, out):
        if call == 2:
            raise KeyboardInterrupt
        return out

    d.network.tamper = stop
    with pytest.raises(fl.Interrupted) as caught:
        fl.sample(d, LABEL, guide="pag(2)", steps=4, sampler="ddim")
    assert caught.value.result.level == d.schedule.grid(4)[2]
    assert not any(m._forward_hooks for m in d.network.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "cgf(3)"}, "unknown name 'cgf'.*did you mean .*'cfg'"),
        ({"guide": "cfg(3) | interval(0, 1, unit='snr')"}, "interval: unit must be one of"),
        ({"guide": "cfg(nan)"}, r"cfg: w must be in \(-inf, inf\), got nan"),
        ({"guide": "cfg(inf)"}, r"cfg: w must be in \(-inf, inf\), got inf"),
        ({"sampler": "huen"}, "unknown name 'huen'; did you mean 'heun'"),
        ({"sampler": "ddim(eta=2)"}, r"ddim: eta must be in \[0, 1\], got 2"),
        ({"sampler": "ddim(et=1)"}, "ddim has no parameter 'et'; did you mean 'eta'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": -3}, "steps must be a whole number of at least 1, got -3"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"n": 0}, "n must be a whole number of at least 1, got 0"),
        ({"max_batch": 0}, "max_batch must be a whole number of at least 1, got 0"),
        ({"spacing": "karas"}, "spacing must be one of .*did you mean 'karras'"),
        ({"batching": "batch"}, "batching must be one of batched, sequential"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, got"),
        ({"n": 3}, "condition: label has batch 2, but x has batch 3"),
        ({"n": 3, "shape": (2, 2, 8, 8)}, "n = 3 contradicts shape"),
        ({"guide": "autoguidance(2, model='week')"}, "model 'week'.*did you mean 'weak'"),
        ({"guide": "pag(2, layers='mi')"}, "attention layer matches 'mi'"),
    ],
)
def test_bad_input_is_named(options, message):
    d = tiny_denoiser()
    with pytest.raises(ValueError, match=message):
        fl.sample(d, LABEL, **{"steps": 2, **options})
    assert d.network.calls == 0


@pytest.mark.parametrize("steps", [math.nan, math.inf, "4", None, True])
def test_steps_that_are_no_number(steps):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got"):
        fl.sample(tiny_denoiser(), LABEL, steps=steps)


def test_missing_condition_is_named():
    with pytest.raises((ValueError, TypeError), match="label"):
        fl.sample(tiny_denoiser(), n=2, steps=2)


def test_batches_that_differ_are_named():
    with pytest.raises(ValueError, match=r"batches differ: \{'label': 2, 'other': 3\}"):
        fl.sample(tiny_denoiser(), {"label": [1, 2], "other": [1, 2, 3]}, steps=2)


def test_unknown_shape_is_named():
    d = fl.Denoiser(lambda x, t: x, fl.schedules.EDM(), "sample")
    with pytest.raises(ValueError, match="does not know the shape of a sample; give shape="):
        fl.sample(d, n=2, steps=2)


def test_rule_in_a_domain_it_does_not_serve():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Words(fl.Rule):
        name = "words"
        domains = frozenset({"logprob"})

        def apply(self, update, predictions, ctx):
            return update

    with pytest.raises(ValueError, match="words: does not serve the domain 'continuous'"):
        fl.sample(tiny_denoiser(), LABEL, guide=fl.CFG(2.0) | Words(), steps=2)


def test_network_that_predicts_nan_is_named_and_can_be_let_go():
    d = fl.Denoiser(lambda x, t: x * math.nan, fl.schedules.EDM(), "sample", shape=(2,))
    with pytest.raises(FloatingPointError, match="branch 'cond' is NaN or infinite at step 0"):
        fl.sample(d, n=2, steps=2)
    assert fl.sample(d, n=2, steps=2, check=False).x.isnan().all()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, r"conditioned on 'label', which is missing"),
        ({"lable": 1}, r"takes no 'lable'; did you mean 'label'"),
        ({"label": 11}, r"label must be in \[0, 9\], got 11"),
        ({"label": -1}, r"label must be in \[0, 9\], got -1"),
        ({"label": 1.5}, r"label must be whole numbers"),
    ],
)
def test_a_condition_that_the_network_cannot_take_is_named(condition, message):
    with pytest.raises(ValueError, match=message):
        fl.sample(tiny_denoiser(), condition, n=2, steps=1)


def test_null_is_a_condition_like_any_other():
    assert fl.sample(tiny_denoiser(), {"label": 10}, n=2, steps=1).x.isfinite().all()


def test_a_shape_that_is_not_the_models_is_refused():
    with pytest.raises(ValueError, match="shape must end in"):
        fl.sample(tiny_denoiser(), {"label": 1}, shape=(2, 5, 5), steps=1)
    with pytest.raises(ValueError, match="3 values were given for a batch of 2"):
        fl.sample(tiny_denoiser(), {"label": 1}, n=2, steps=1, guide="cfg([1, 2, 3])")
