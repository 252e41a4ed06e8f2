"""Steered pipelines against themselves, and rules against `fl.combine` on recorded branches."""

import inspect

import diffusers
import pytest
import torch
from tests.adapters.steered import close, steered
from torch.testing import assert_close

import fairlead as fl
from fairlead.adapters.diffusers import inputs
from fairlead.adapters.diffusers.levels import Levels
from fairlead.testing.pipelines import PIPELINES

NAMES = list(PIPELINES)
OWN = {
    # cfg(w) has one scale, so that both of theirs are w; they sum in another order
    "pix2pix": {"image_guidance_scale": 4.0},
    "sdxl_pix2pix": {"image_guidance_scale": 4.0},
    "lumina2": {"cfg_normalization": False},  # theirs is cfg(w) | renorm
}
FLOOR = {"pix2pix": 2e-6, "sdxl_pix2pix": 2e-6}  # float32 rounding of another order, 4 steps
SCHEDULED = {"PNDMScheduler": {"skip_prk_steps": True}}
SOME = ["sd", "sd_v", "sdxl", "sd3", "flux", "pixart_alpha", "z_image", "wan", "stable_audio"]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "qwen_image"])
def test_cfg_is_the_pipelines_own_to_the_bit(tiny, name):
    pipe, recipe = tiny(name)
    own = recipe.run(pipe, **{**recipe.scale(4.0), **OWN.get(name, {})})
    ours, s = steered(pipe, recipe, "cfg(4)")
    if name in FLOOR:
        close(ours, own, FLOOR[name])
    else:
        assert torch.equal(ours, own)
    assert s.report.nfe == 2 * len(s.report.entries)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "wan", "z_image", "pixart_alpha"])
def test_lists_of_prompts_too(tiny, name):
    """Z-Image writes its template into the list that it is given: learning its layout must not."""
    pipe, recipe = tiny(name)

    def prompts():
        return {"prompt": ["a lighthouse", "a red car"], "negative_prompt": ["fog", "a cat"]}

    own = recipe.run(pipe, **recipe.scale(4.0), **prompts())
    assert torch.equal(steered(pipe, recipe, "cfg(4)", **prompts())[0], own)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("sd", "PNDMScheduler"),
        ("sd", "DDPMScheduler"),
        ("sd", "EulerAncestralDiscreteScheduler"),
        ("sd", "HeunDiscreteScheduler"),
        ("sd", "KDPM2AncestralDiscreteScheduler"),
        ("sd", "LCMScheduler"),
        ("sd", "DEISMultistepScheduler"),
        ("pixart_alpha", "SASolverScheduler"),
        ("sdxl", "DPMSolverMultistepScheduler"),
        ("cogvideox", "CogVideoXDPMScheduler"),
        ("sd3", "FlowMatchHeunDiscreteScheduler"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of theirs
def test_other_schedulers(tiny, name, scheduler):
    """To the bit as the pipeline's own, and the same by way of clean estimates."""
    pipe, recipe = tiny(name)
    old, kind = pipe.scheduler, getattr(diffusers, scheduler)
    pipe.scheduler = kind.from_config(old.config, **SCHEDULED.get(scheduler, {}))
    try:
        own = recipe.run(pipe, **recipe.scale(4.0))
        ours, _ = steered(pipe, recipe, "cfg(4)")
        assert torch.equal(ours, own)
        through, _ = steered(pipe, recipe, "cfg(4) | apg(eta=1.0)")
        close(through, own, 5e-5)  # eps = (x - alpha D) / sigma, divided by small sigma
    finally:
        pipe.scheduler = old


@pytest.mark.parametrize(
    ("kind", "name", "changes"),
    [
        ("FluxImg2ImgPipeline", "flux", ("image",)),
        ("FluxInpaintPipeline", "flux", ("image", "mask_image")),
        ("ZImageImg2ImgPipeline", "z_image", ("image",)),
        ("StableDiffusionControlNetImg2ImgPipeline", "sd_controlnet", ("image", "control_image")),
        (
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "sdxl_controlnet",
            ("image", "control_image"),
        ),
    ],
)
def test_variants_of_pipelines(tiny, kind, name, changes):
    """Other pipelines around the same networks, which begin with a picture."""
    base, recipe = tiny(name)
    made = getattr(diffusers, kind)
    taken = inspect.signature(made.__init__).parameters
    pipe = made(**{n: c for n, c in base.components.items() if n in taken})
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
    given = {n: mask if n == "mask_image" else picture for n in changes}
    known = inspect.signature(made.__call__).parameters
    assert set(recipe.call) <= set(known)
    start = {"strength": 0.7, "num_inference_steps": 4, **given}
    own = recipe.run(pipe, **recipe.scale(4.0), **start)
    ours, s = steered(pipe, recipe, "cfg(4)", **start)
    assert torch.equal(ours, own)
    assert s.report.nfe == 2 * len(s.report.entries)


@pytest.mark.parametrize("name", ["qwen_image", "lumina2"])
def test_pipelines_that_renormalise_what_they_combine(tiny, name):
    pipe, recipe = tiny(name)
    own = recipe.run(pipe, **recipe.scale(4.0))
    ours, _ = steered(pipe, recipe, "cfg(4) | renorm(dim=-1, grow=True)")
    close(ours, own, 5e-6)  # float32, and a way to clean estimates and back


@pytest.mark.parametrize("name", NAMES)
def test_scale_one_is_the_conditional_model_and_one_evaluation(tiny, name):
    pipe, recipe = tiny(name)
    off = recipe.run(pipe, **recipe.scale(1.0), negative_prompt=None)
    ours, s = steered(pipe, recipe, "cfg(1)")
    close(ours, off, 2e-6)  # some pipelines call for a batch of one and of two, and kernels differ
    assert s.report.nfe == len(s.report.entries)


@pytest.mark.parametrize("name", NAMES)
def test_the_way_through_clean_estimates_changes_nothing(tiny, name):
    """A neutral rule makes every branch a clean estimate and the result an output again."""
    pipe, recipe = tiny(name)
    plain, a = steered(pipe, recipe, "cfg(4)")
    through, b = steered(pipe, recipe, "cfg(4) | apg(eta=1.0)")
    close(through, plain, 5e-6)
    for x, y in zip(a.report.entries, b.report.entries, strict=True):
        assert x.t == y.t
        assert x.sizes["cfg(4.0)"] == pytest.approx(y.sizes["cfg(4.0)"], rel=1e-3, abs=1e-4)


RULES = [
    "apg(eta=0, r=1.0)",
    "rescale(0.7)",
    "zero_star",
    "threshold(1.0)",
    "frequency([1.5, 0.5])",
]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_combine_on_recorded_branches(tiny, tape, name, rule):
    pipe, recipe = tiny(name)
    if "frequency" in rule and name in ("flux", "stable_audio"):
        pytest.skip("patches in a row and sound have no picture to cut into bands")
    guide = fl.guide(f"cfg(4) | {rule}")
    with tape(pipe, recipe.networks) as seen:
        _, s = steered(pipe, recipe, guide)
    levels, batch = Levels(pipe.scheduler), 1
    run = fl.Run(check=False, steps=len(s.report.entries))
    layout, per_step = s.report.layout.split()[1:], len(seen.outputs) // len(seen.steps)
    for i, (output, t, args, _) in enumerate(seen.steps):
        calls = seen.outputs[i * per_step : (i + 1) * per_step]
        raw = dict(zip(layout, torch.cat(calls).split(batch), strict=True))
        scale = levels.at(t, i)
        x = args[0] / scale.latents if levels.kind == "sigmas" else args[0]
        sign = -1.0 if name == "z_image" else 1.0
        flat = {k: v[:, : x.shape[1]].reshape(x.shape) for k, v in raw.items()}
        clean = {k: levels.to_x0(v, x, scale.level, sign) for k, v in flat.items()}
        made = fl.combine(guide, clean, x=x, t=scale.level, schedule=levels.schedule, run=run)
        expected = levels.from_x0(made, x, scale.level, 1.0)
        assert_close(output, expected, rtol=2e-4, atol=2e-4)  # eps = (x - a D)/s at s = 0.03


def test_dual_guidance_is_instruct_pix2pix(tiny):
    pipe, recipe = tiny("pix2pix")
    own = recipe.run(pipe, guidance_scale=5.0, image_guidance_scale=1.5)
    guide = "multi(['text', 'image'], [[5, 'all', 'image'], [1.5, 'image', 'none']], 'none')"
    ours, s = steered(pipe, recipe, guide)
    close(ours, own, 3e-6)
    assert s.report.nfe == 3 * len(s.report.entries)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart_sigma", "wan", "z_image"])
def test_a_further_prompt_is_the_same_as_the_negative_one(tiny, name):
    pipe, recipe = tiny(name)
    own, _ = steered(pipe, recipe, "cfg(4)")
    guide = "cfg(4, against='other')"
    further, s = steered(pipe, recipe, guide, {"prompts": {"other": "fog"}})
    close(further, own, 5e-6)  # other batch sizes
    assert s.report.nfe == 2 * len(s.report.entries)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "pixart_alpha"])
def test_prompts_joined_by_and_and_not(tiny, name):
    """`compose` weighs prompts against the null; one of them twice is the pipeline's own."""
    pipe, recipe = tiny(name)
    prompts = {"a": "a lighthouse in a storm", "b": "a red car"}
    own = recipe.run(pipe, **recipe.scale(4.0))
    halves = fl.recipes.compose("text", ["a", "cond"], [1.5, 2.5])
    both, _ = steered(pipe, recipe, halves, {"prompts": prompts})
    close(both, own, 1e-5)
    alone, s = steered(pipe, recipe, fl.recipes.compose("text", ["cond"], [4.0]))
    close(alone, own, 5e-6)
    assert s.report.nfe == 2 * len(s.report.entries)
    # NOT the same as what is asked for takes it back: the null remains
    back = fl.recipes.compose("text", ["cond", "a"], [4.0, -4.0])
    left, _ = steered(pipe, recipe, back, {"prompts": prompts})
    null, _ = steered(pipe, recipe, "cfg(0)")
    close(left, null, 1e-5)
    away = fl.recipes.compose("text", ["cond", "b"], [4.0, -1.0])
    out, s = steered(pipe, recipe, away, {"prompts": prompts})
    assert s.report.nfe == 3 * len(s.report.entries)
    assert (out - own).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "wan"])
def test_three_branches_and_all_ways_to_batch_them(tiny, name):
    pipe, recipe = tiny(name)
    guide = "cfg(4) + perp_neg(2)"
    outs = []
    for batching in ("auto", "batched", "sequential"):
        options = {"prompts": {"negative": "a red car"}, "batching": batching}
        out, s = steered(pipe, recipe, guide, options)
        assert s.report.nfe == 3 * len(s.report.entries)
        outs.append(out)
    steps = len(s.report.entries)
    assert s.report.calls == 3 * steps
    close(outs[1], outs[0], 1e-5)
    close(outs[2], outs[0], 1e-5)
    assert (outs[0] - steered(pipe, recipe, "cfg(4)")[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_batched_makes_one_call(tiny, name):
    pipe, recipe = tiny(name)
    _, s = steered(pipe, recipe, "cfg(4)", {"batching": "batched"})
    assert s.report.calls == len(s.report.entries)


@pytest.mark.parametrize(
    ("name", "guide"),
    [
        ("sd", "cfg(4)"),
        ("sd_controlnet", "cfg(4) | apg(eta=0)"),
        ("sdxl", "cfg(4) + pag(3, layers='mid_block')"),
        ("sd", "cfg(4) + sag(1, layers='mid_block', state='null')"),
        ("sd3", "cfg(4) + slg(2, layers='transformer_blocks.0')"),
        ("flux", "cfg(4) + tsg(2)"),
        ("z_image", "cfg(4)"),
        ("pixart_alpha", "cfg([4, 1])"),
    ],
)
def test_long_calls_are_split(tiny, name, guide):
    """No call has more rows than `max_batch`, the pipeline's own included."""
    pipe, recipe = tiny(name)
    more = {"image": [recipe.arguments["image"]] * 2} if name == "sd_controlnet" else {}
    seen = []

    def prompts():
        return {"prompt": ["a lighthouse", "a red car"], "negative_prompt": ["fog", "fog"], **more}

    def look(module, args, kwargs):
        seen.append(len(args[0] if args else inputs.sample(kwargs)))

    network = getattr(pipe, recipe.networks[0])
    for batching in ("auto", "batched"):
        whole, s = steered(pipe, recipe, guide, {"batching": batching}, **prompts())
        for limit in (1, 3):
            handle = network.register_forward_pre_hook(look, with_kwargs=True)
            try:
                options = {"batching": batching, "max_batch": limit}
                parts, t = steered(pipe, recipe, guide, options, **prompts())
            finally:
                handle.remove()
            close(parts, whole, 2e-5)  # kernels differ between batch sizes
            assert max(seen) <= limit
            assert len(seen) == t.report.calls >= s.report.calls
            assert torch.equal(torch.as_tensor(t.report.nfe), torch.as_tensor(s.report.nfe))
            seen.clear()


def test_split_calls_and_the_limit_itself(tiny):
    from diffusers import FirstBlockCacheConfig

    pipe, recipe = tiny("ltx")
    own = recipe.run(pipe, **recipe.scale(4.0))
    assert torch.equal(steered(pipe, recipe, "cfg(4)", {"max_batch": 2})[0], own)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    try:  # each part has a state of its own
        many = {"num_inference_steps": 6}
        split, _ = steered(pipe, recipe, "cfg(4)", {"max_batch": 1}, **many)
        sequential, _ = steered(pipe, recipe, "cfg(4)", {"batching": "sequential"}, **many)
        close(split, sequential, 1e-5)
    finally:
        pipe.transformer.disable_cache()
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match=rf"max_batch must be a whole number .* got {bad}"):
            fl.steer(pipe, "cfg(4)", max_batch=bad)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("sd", "mid_block"),
        ("sdxl", "mid_block"),
        ("sd3", "transformer_blocks.0"),
        ("flux", "transformer_blocks.0"),
        ("pixart_alpha", "transformer_blocks.0"),
        ("wan", "blocks.0"),
    ],
)
def test_perturbed_attention(tiny, name, layers):
    pipe, recipe = tiny(name)
    guide = f"cfg(4) + pag(3, layers='{layers}')"
    auto, s = steered(pipe, recipe, guide)
    assert s.report.nfe == 3 * len(s.report.entries)
    batched, t = steered(pipe, recipe, guide, {"batching": "batched"})
    assert t.report.calls == len(t.report.entries)
    close(batched, auto, 1e-5)
    assert (auto - steered(pipe, recipe, "cfg(4)")[0]).abs().max() > 1e-4


def test_perturbed_time(tiny):
    pipe, recipe = tiny("flux")
    out, s = steered(pipe, recipe, "tsg(3)")
    assert s.report.nfe == 2 * len(s.report.entries)
    assert (out - steered(pipe, recipe, "none")[0]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["sd", "flux", "wan_two"])
def test_a_second_network(tiny, name):
    """The network itself as its own weak model changes nothing; another one does."""
    pipe, recipe = tiny(name)
    network = getattr(pipe, recipe.networks[0])
    plain, _ = steered(pipe, recipe, "none")
    if name != "wan_two":
        same, s = steered(pipe, recipe, "autoguidance(3)", {"models": {"weak": network}})
        close(same, plain, 1e-5)
        assert s.report.nfe == 2 * len(s.report.entries)

    class Weak(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return (network(*args, **kwargs)[0] * 0.5,)

    with pytest.raises(ValueError, match=r"pass fl.steer\(models="):
        steered(pipe, recipe, "autoguidance(3)")
    other, _ = steered(pipe, recipe, "none + autoguidance(3)", {"models": {"weak": Weak()}})
    assert (other - plain).abs().max() > 1e-3
