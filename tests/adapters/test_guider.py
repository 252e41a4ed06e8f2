"""`fl.as_guider`: guides in modular pipelines, against diffusers' own guiders."""

import logging
from functools import lru_cache

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance, PerturbedAttentionGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.hooks import LayerSkipConfig

import fairlead as fl
from fairlead.adapters.diffusers.guider import FairleadGuider
from fairlead.testing.pipelines import MODULAR, tiny_modular

shared = lru_cache(tiny_modular)
LAYERS = {"sdxl": "mid_block.**"}


@pytest.fixture(autouse=True)
def quiet():
    """diffusers says at every guider that guiders are experimental."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Theirs(ClassifierFreeGuidance):
    """Their rule, also where a pipeline rescales to the length of the conditional prediction."""

    def forward(self, pred_cond, pred_uncond=None):
        made = super().forward(pred_cond, pred_uncond)
        return GuiderOutput(pred=made.pred, pred_cond=made.pred, pred_uncond=pred_uncond)


def distance(z):
    return (z - 1).square().flatten(1).mean(1)


def run(name, make, **changes):
    pipe = shared(name)
    pipe.update_components(**{n: make() for n in ("guider", "guider_2") if n in pipe.components})
    return MODULAR[name].run(pipe, **changes)


def ours(name, guide, **options):
    return run(name, lambda: fl.as_guider(guide, shared(name), **options))


@lru_cache
def theirs(name, w=4.0):
    return run(name, lambda: Theirs(guidance_scale=w))


def close(a, b):
    # two ways of rounding, through three steps of a network
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("name", MODULAR)
class TestEveryFamily:
    def test_cfg_is_theirs_to_the_bit(self, name):
        want = theirs(name)
        for made in (ours(name, "cfg(4)"), run(name, lambda: fl.as_guider("cfg(4)"))):
            torch.testing.assert_close(made, want, rtol=0, atol=0)

    def test_a_guider_serves_run_after_run(self, name):
        first = ours(name, "cfg(4) | apg(beta=-0.5)")
        assert torch.equal(first, MODULAR[name].run(shared(name)))

    def test_a_neutral_rule_in_x0_is_cfg(self, name):
        close(ours(name, "cfg(4) | apg(eta=1)"), theirs(name))
        assert not torch.allclose(ours(name, "cfg(4) | apg(eta=0)"), theirs(name), atol=1e-4)

    def test_scale_one_is_the_condition_alone(self, name):
        one = ours(name, "cfg(1)")
        assert torch.equal(one, ours(name, "none"))
        report = shared(name).guider.report
        assert report.nfe == len(report.entries)  # one evaluation a step
        near = run(name, lambda: Theirs(guidance_scale=1.0 + 1e-6))  # at 1 some blocks fail
        torch.testing.assert_close(one, near, rtol=0, atol=1e-3)

    def test_an_interval_is_their_start_and_stop(self, name):
        # four of their steps begin at 0, 1/4, 1/2, 3/4, the last two are off; of three, the last
        # too: ours covers the same steps, by step fractions
        stop = 0.5 if name == "wan_two" else 2 / 3
        want = run(name, lambda: Theirs(guidance_scale=4.0, stop=stop))
        pipe = shared(name)
        make = lambda: fl.as_guider("cfg(4) | interval(0, 0.6)", pipe)  # noqa: E731
        if name == "wan_two":
            make = lambda: fl.as_guider("cfg(4) | interval(0, 0.4)", pipe)  # noqa: E731
        close(run(name, make), want)

    def test_long_calls_are_split(self, name):
        prompt = MODULAR[name].call["prompt"]
        both = {"prompt": [prompt, "a red car"], "negative_prompt": ["fog", "fog"]}
        whole = run(name, lambda: fl.as_guider("cfg(4)", shared(name)), **both)
        calls = shared(name).guider.report.log.calls
        both = {"prompt": [prompt, "a red car"], "negative_prompt": ["fog", "fog"]}
        close(run(name, lambda: fl.as_guider("cfg(4)", shared(name), max_batch=1), **both), whole)
        assert shared(name).guider.report.log.calls == 2 * calls

    def test_one_batch_gives_the_same(self, name):
        close(ours(name, "cfg(4)", batching="batched"), theirs(name))


def test_pag_is_theirs():
    """Theirs leaves the first step out, whatever its start."""
    where = "mid_block.attentions.0.transformer_blocks"
    config = LayerSkipConfig(
        indices=[0, 1], fqn=where, skip_attention=False, skip_ff=False, skip_attention_scores=True
    )
    want = run(
        "sdxl",
        lambda: PerturbedAttentionGuidance(
            guidance_scale=4.0,
            perturbed_guidance_scale=3.0,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
            perturbed_guidance_config=config,
        ),
    )
    made = ours("sdxl", "cfg(4) + (pag(3, layers='mid_block.**') | interval(0.2, 1))")
    assert shared("sdxl").guider.report.nfe == 3 + 3 + 2
    close(made, want)
    assert not torch.allclose(made, theirs("sdxl"), atol=1e-2)


def test_the_report_counts_what_was_evaluated():
    ours("sd3", "cfg(4) | interval(0, 0.3)")
    report = shared("sd3").guider.report
    assert [[b.name for b in e.wanted] for e in report.entries] == [
        ["cond", "null"],
        ["cond"],
        ["cond"],
    ]
    assert report.nfe == 4
    assert "modular pipeline under cfg(4.0) | interval(0.0, 0.3)" in str(report)


@pytest.mark.parametrize(
    ("interval", "wanted"), [("0, 0.4", [2, 2, 1, 1]), ("0.4, 0.9", [1, 1, 2, 2])]
)
def test_the_second_network_of_a_run_goes_on_in_time(interval, wanted):
    pipe = shared("wan_two")
    ours("wan_two", f"cfg(4) | interval({interval})")
    entries = [e for g in (pipe.guider, pipe.guider_2) for e in g.report.entries]
    assert [e.step for e in entries] == [0, 1, 2, 3]
    assert [len(e.wanted) for e in entries] == wanted


def test_the_configuration_comes_back(tmp_path):
    made = fl.as_guider(
        "cfg(4) + pag(3, layers='mid_block.**') | rescale(0.7)", seed=3, max_batch=2
    )
    made.save_pretrained(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["guider_config.json"]
    back = FairleadGuider.from_pretrained(tmp_path)
    assert back.guide == made.guide
    assert back.options == made.options
    assert back.new(guide="cfg(2)").guide == fl.CFG(2.0)
    assert "cfg(4.0)" in repr(back)


def test_a_loaded_guider_guides(tmp_path):
    want = ours("sdxl", "cfg(4) | apg()")
    shared("sdxl").guider.save_pretrained(tmp_path)
    back = FairleadGuider.from_pretrained(tmp_path)
    back.scheduler = shared("sdxl")
    assert torch.equal(run("sdxl", lambda: back), want)


def test_a_disabled_guider_is_the_condition_alone():
    """Blocks of SDXL switch it on again, whatever it is."""
    guider = fl.as_guider("cfg(4)")
    guider.disable()
    assert torch.equal(run("sd3", lambda: guider), ours("sd3", "none"))
    guider.enable()
    assert torch.equal(run("sd3", lambda: guider), theirs("sd3"))


def test_embeddings_that_change_between_steps_are_seen():
    """What is learned in the first step must not be used in the others."""
    pipe = shared("sd3")

    def changing(make):
        guider = make()
        prepare, seen = guider.prepare_inputs, []

        def prepared(data):
            seen.append(None)
            moved = {n: (c, u * (1 + len(seen))) for n, (c, u) in data.items()}
            return prepare({**moved, "hidden_states": data["hidden_states"]})

        guider.prepare_inputs = prepared
        return guider

    want = run("sd3", lambda: changing(lambda: Theirs(guidance_scale=4.0)))
    made = run("sd3", lambda: changing(lambda: fl.as_guider("cfg(4)", pipe)))
    assert torch.equal(made, want)
    assert not torch.allclose(made, theirs("sd3"), atol=1e-3)


def test_an_exception_leaves_the_network_as_it_was():
    pipe = shared("sdxl")
    plain = theirs("sdxl")
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == 3:  # the perturbed branch of the first step
            raise RuntimeError("out of memory")

    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ours("sdxl", "cfg(4) + pag(3, layers='mid_block.**')")
    handle.remove()
    assert "_fairlead_steered" not in vars(pipe.unet)
    assert torch.equal(run("sdxl", lambda: Theirs(guidance_scale=4.0)), plain)
    assert torch.equal(ours("sdxl", "cfg(4)"), plain)


@pytest.mark.parametrize(
    ("guide", "says"),
    [
        ("cfg(4) | apg()", r"apg\(\) needs the noise level.*as_guider\(guide, pipe\)"),
        ("cfg(4) | interval(0, 0.5)", r"interval\(0.0, 0.5\) needs the noise level"),
        ("cfg(4, against='negative')", "branch 'negative'.*null is its negative prompt"),
        ("cfgpp(0.6)", r"cfgpp\(0.6\) acts in the scheduler's step"),
        (fl.DPS(distance), r"dps\('distance'\) acts in the scheduler's step"),
        (
            fl.Layout(fl.energy.Boxes({1: None})),
            r"layout\('boxes'\) moves the sample before a step, of which a guider is not told",
        ),
        ("dps('light')", r"asks for the energy 'light': pass energies="),
        (fl.ClassifierGuidance(distance), r"needs the noise level.*as_guider\(guide, pipe\)"),
    ],
)
def test_what_a_guider_cannot_do_is_refused(guide, says):
    with pytest.raises(ValueError, match=says):
        run("sdxl", lambda: fl.as_guider(guide))


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("point", ["network", "estimate"])
def test_a_classifier_guides_as_in_a_classic_pipeline(name, point):
    """The same components in a classic pipeline, from the same noise."""
    from fairlead.testing.pipelines import PIPELINES, tiny_pipeline

    guide = fl.CFG(4.0) + (fl.ClassifierGuidance(distance, point=point) | fl.Interval(0.3, 1.0))
    pipe, recipe, other = shared(name), PIPELINES[name], tiny_pipeline(name)
    made = ours(name, guide)
    log = pipe.guider.report.log
    assert (log.gradients, log.backwards) == (2, 2 if point == "network" else 0)
    assert distance(made) < distance(theirs(name))
    parts = {n: pipe.components.get(n, v) for n, v in other.components.items()}
    classic = type(other)(**parts)
    classic.set_progress_bar_config(disable=True)
    close(recipe.run(classic, **recipe.scale(4.0)), theirs(name))
    with fl.steer(classic, guide):
        close(made, recipe.run(classic))


@pytest.mark.parametrize("name", ["sdxl", "wan"])
def test_steering_a_modular_pipeline_is_refused_and_says_how(name):
    with pytest.raises(ValueError, match=r"is a modular pipeline.*guider=fl\.as_guider\(guide"):
        fl.steer(shared(name), "cfg(4)")


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="as_guider: batching must be"):
        fl.as_guider("cfg(4)", batching="all")
    with pytest.raises(ValueError, match="as_guider: max_batch must be a whole number"):
        fl.as_guider("cfg(4)", max_batch=0)
    with pytest.raises(ValueError, match="did you mean"):
        fl.as_guider("cgf(4)")
