"""Energies in pipelines: against `fl.sample` on the same network, levels and noise."""

import pytest
import torch
from tests.adapters.steered import close, steered
from torch.testing import assert_close

import fairlead as fl
from fairlead.adapters.diffusers.decoding import VAE
from fairlead.adapters.diffusers.levels import Levels


def target(z):
    """A squared distance to a wave: no symmetry, and a gradient everywhere."""
    wave = torch.linspace(-1, 2, z[0].numel(), dtype=z.dtype).reshape(z.shape[1:])
    return ((z - wave) ** 2).flatten(1).mean(1)


def noisy(x, level):
    return (x - 0.3 * level.alpha).square().flatten(1).mean(1)


NOISY = fl.energy.Function(noisy, "noisy", noisy=True)
LOGITS = fl.energy.Classifier(
    lambda z: torch.stack([z.flatten(1).mean(1), -z.flatten(1)[:, ::2].mean(1)], 1), 1
)
TERMS = {
    "classifier_guidance": fl.ClassifierGuidance(target, 5.0),
    "classifier_guidance at the estimate": fl.ClassifierGuidance(target, 5.0, point="estimate"),
    "classifier_guidance of noisy samples": fl.ClassifierGuidance(NOISY, 5.0),
    "classifier_guidance of the mean": fl.ClassifierGuidance(target, 5.0, form="mean"),
    "dps": fl.DPS(target, 0.5),
    "dreamguider": fl.Dreamguider(target, 10.0),
    "elucd": fl.EluCD(LOGITS, 20.0, clip=None),
    "flowchef": fl.FlowChef(target, 0.5, 2),
    "freedom": fl.FreeDoM(target, 5.0),
    "lgd": fl.LGD(target, 5.0, gamma=0.2, samples=2),
    "mpgd": fl.MPGD(target, 5.0, 2),
    "norm_guidance": fl.NormGuidance(target, 0.2),
    "tfg": fl.TFG(target, 5.0, 5.0, gamma=0.1, iterations=2, samples=2),
    "ugd": fl.UGD(target, 5.0, 2),
}


def direct(pipe, recipe, guide, seed=3, sampler="ddim", steps=3, like=None, **options):
    """The same run by `fl.sample`: the network alone, with the levels that the scheduler walks."""
    given = recipe.arguments
    at = Levels(pipe.scheduler)
    times = pipe.scheduler.timesteps
    levels = [at.at(t, i).level for i, t in enumerate(times)]
    last = at.following(times[-1]) if at.kind == "cumulative" else at.of_sigma(0.0)
    levels.append(last.level)
    network = getattr(pipe, recipe.networks[0])
    text = {"prompt": given["prompt"], "negative_prompt": given["negative_prompt"]}
    if recipe.name == "sd":
        cond, null = pipe.encode_prompt(text["prompt"], "cpu", 1, True, text["negative_prompt"])
        conditions = {"text": cond}
        nulls = {"text": null[0]}

        def call(x, t, text):
            return network(x, t, text)[0]

    elif recipe.name == "sd3":
        cond, null, pooled, none = pipe.encode_prompt(
            text["prompt"],
            text["prompt"],
            text["prompt"],
            negative_prompt=text["negative_prompt"],
            max_sequence_length=given.get("max_sequence_length", 256),
        )
        conditions = {"text": cond, "pooled": pooled}
        nulls = {"text": null[0], "pooled": none[0]}

        def call(x, t, text, pooled):
            given = {"encoder_hidden_states": text, "pooled_projections": pooled}
            return network(x, timestep=1000 * t, **given)[0]

    else:
        length = given.get("max_sequence_length", 512)
        cond, pooled, ids = pipe.encode_prompt(text["prompt"], None, max_sequence_length=length)
        null, none, _ = pipe.encode_prompt(
            text["negative_prompt"], None, max_sequence_length=length
        )
        conditions = {"text": cond, "pooled": pooled}
        nulls = {"text": null[0], "pooled": none[0]}
        side = round(like.shape[1] ** 0.5)
        places = pipe._prepare_latent_image_ids(1, side, side, "cpu", torch.float32)

        def call(x, t, text, pooled):
            made = network(
                x,
                encoder_hidden_states=text,
                timestep=t,
                pooled_projections=pooled,
                img_ids=places,
                txt_ids=ids,
            )
            return made[0]

    kind = "flow_prediction" if at.kind == "flow" else at.prediction
    denoiser = fl.Denoiser(call, at.schedule, kind, null=nulls)
    shape, generator = START.get(recipe.name, like.shape), torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=generator)
    if recipe.name == "flux":
        noise = pipe._pack_latents(noise, *noise.shape)
    with torch.no_grad():
        out = fl.sample(
            denoiser,
            conditions,
            guide=guide,
            sampler=sampler,
            levels=levels,
            x=noise,
            seed=seed,
            **options,
        )
    return out


START = {"flux": (1, 4, 8, 8)}  # before it is packed


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("term", TERMS)
def test_terms_are_those_of_fl_sample(tiny, name, term):
    pipe, recipe = tiny(name)
    guide = fl.CFG(3.0) + TERMS[term]
    ours, s = steered(pipe, recipe, guide, {"seed": 3})
    out = direct(pipe, recipe, guide, like=ours)
    close(ours, out.x, 1e-4)
    assert s.report.nfe == out.nfe
    assert s.report.log.gradients == out.report.gradients
    assert s.report.log.backwards == out.report.backwards
    assert (ours - steered(pipe, recipe, "cfg(3)")[0]).abs().max() > 1e-3


def test_they_stand_in_the_corrector_too(tiny):
    pipe, recipe = tiny("sd3")
    guide = fl.CFG(3.0) + TERMS["dps"]
    ours, s = steered(pipe, recipe, guide, {"seed": 3, "sampler": "pcg"})
    out = direct(pipe, recipe, guide, sampler="pcg", like=ours)
    close(ours, out.x, 1e-4)
    assert s.report.nfe == out.nfe


@pytest.mark.parametrize("name", ["sdxl", "pixart_alpha", "z_image", "wan", "qwen_image", "ltx"])
@pytest.mark.parametrize("term", ["dps", "mpgd", "classifier_guidance"])
def test_they_bring_the_energy_down_on_other_pipelines(tiny, name, term):
    """Scaled latents, variance channels, lists of rows, videos, packed patches."""
    pipe, recipe = tiny(name)
    # a score is divided by the signal, of which UniPC's first level on straight paths has 1e-4
    late = fl.ClassifierGuidance(target) | fl.Interval(0.3, 1.0)
    kind = {"dps": fl.DPS(target, 0.2), "mpgd": fl.MPGD(target, 1.0)}
    guide = fl.CFG(1.0) + kind.get(term, late)
    plain, _ = steered(pipe, recipe, "cfg(1)")
    ours, s = steered(pipe, recipe, guide)
    assert target(ours) < target(plain)
    assert s.report.nfe == len(s.report.entries)
    half, _ = steered(pipe, recipe, fl.CFG(1.0) + fl.DPS(target, 0.0))
    close(half, plain, 5e-6)


def test_samples_of_a_batch_are_alone(tiny):
    pipe, recipe = tiny("sd")
    prompts = {"prompt": ["a lighthouse", "a red car"], "negative_prompt": ["fog", "fog"]}
    guide = fl.CFG(3.0) + fl.DPS(target, (0.5, 0.0))
    both, _ = steered(pipe, recipe, guide, **prompts)
    on, _ = steered(pipe, recipe, fl.CFG(3.0) + fl.DPS(target, 0.5), **prompts)
    off, _ = steered(pipe, recipe, fl.CFG(3.0), **prompts)
    close(both[0], on[0])
    close(both[1], off[1])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "qwen_image", "z_image", "wan"])
def test_the_decoder_is_the_pipelines_own(tiny, name):
    pipe, recipe = tiny(name)
    latents = recipe.run(pipe)
    generator = torch.Generator().manual_seed(0)
    image = pipe(**{**recipe.arguments, "output_type": "pt", "generator": generator})[0]
    grid = None
    if latents.ndim == 3:
        side = round(latents.shape[1] ** 0.5)
        grid = (side, side)
    with torch.no_grad():
        made = VAE(pipe)(latents, grid)
    if made.ndim == 5:
        made = made.transpose(1, 2)
    assert_close((made / 2 + 0.5).clamp(0, 1), image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_energies_of_pixels(tiny, name):
    """`decode='vae'` is the energy of what the decoder makes, at the estimate and through it."""
    pipe, recipe = tiny(name)
    decode = VAE(pipe)
    grid = (4, 4) if name == "flux" else None

    def pixels(z):
        return target(decode(z, grid))

    for term in (fl.DPS, fl.MPGD):
        inside, s = steered(pipe, recipe, term(target, 0.5), {"decode": "vae"})
        by_hand, _ = steered(pipe, recipe, term(pixels, 0.5))
        assert torch.equal(inside, by_hand)
        given = {"decode": lambda z: decode(z, grid)}
        assert torch.equal(steered(pipe, recipe, term(target, 0.5), given)[0], by_hand)
        assert s.report.log.gradients == len(s.report.entries)
        assert (inside - steered(pipe, recipe, term(target, 0.5))[0]).abs().max() > 1e-3


def test_judges_see_pixels_and_noisy_energies_latents(tiny):
    pipe, recipe = tiny("sd")
    seen = []

    def look(z):
        seen.append(tuple(z.shape))
        return torch.stack([z.flatten(1).mean(1), z.flatten(1)[:, 0]], 1)

    judge = fl.energy.Classifier(look, 1)
    steered(pipe, recipe, fl.EluCD(judge, 1.0), {"decode": "vae"})
    assert set(seen) == {(1, 3, 16, 16)}
    by_name = {"energies": {"bright": NOISY}, "decode": "vae"}
    named, _ = steered(pipe, recipe, "classifier_guidance('bright', 5.0)", by_name)
    carried, _ = steered(pipe, recipe, fl.ClassifierGuidance(NOISY, 5.0))
    assert torch.equal(named, carried)


@pytest.mark.parametrize(
    ("guide", "options", "says"),
    [
        ("dps('light')", {}, r"asks for the energy 'light': pass energies=.*fl.steer"),
        (fl.MPGD(NOISY), {}, "judges noisy samples"),
        (fl.GFCG(LOGITS), {}, "asks for the class of each sample"),
        (fl.MPGD(target), {"decode": "vea"}, "decode must be 'vae', a function"),
        ("dcbg('light')", {}, "dcbg"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tiny, guide, options, says):
    pipe, _ = tiny("sd")
    with pytest.raises(ValueError, match=says):
        fl.steer(pipe, guide, **options)


@pytest.mark.parametrize("name", ["ltx", "cogvideox", "stable_audio", "audioldm2"])
def test_decoders_that_are_not_known_are_refused(tiny, name):
    pipe, _ = tiny(name)
    with pytest.raises(ValueError, match=r"decode='vae' is not known for .*give a function"):
        fl.steer(pipe, fl.MPGD(target), decode="vae")


def test_what_stands_in_the_way_of_a_gradient_is_named(tiny):
    from diffusers import FirstBlockCacheConfig, HeunDiscreteScheduler

    pipe, recipe = tiny("sd")
    old = pipe.scheduler
    with torch.inference_mode(), pytest.raises(RuntimeError, match="call the pipeline outside"):
        steered(pipe, recipe, fl.DPS(target))
    pipe.scheduler = HeunDiscreteScheduler.from_config(old.config)
    try:
        with pytest.raises(ValueError, match=r"dps.* evaluates 2 times a step; take a scheduler"):
            steered(pipe, recipe, fl.DPS(target))
        steered(pipe, recipe, fl.ClassifierGuidance(target))
    finally:
        pipe.scheduler = old
    pipe, recipe = tiny("wan")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    try:
        with pytest.raises(ValueError, match="disable the cache"):
            steered(pipe, recipe, fl.DPS(target))
        steered(pipe, recipe, fl.MPGD(target))
    finally:
        pipe.transformer.disable_cache()


def test_no_graph_is_kept(tiny):
    """What a step returns is free of the graph that its gradient was taken from."""
    pipe, recipe = tiny("pixart_alpha")
    seen = []

    def look(module, args, output):
        seen.append(output[0].requires_grad)

    handle = pipe.transformer.register_forward_hook(look)
    try:
        ours, s = steered(pipe, recipe, fl.CFG(3.0) + fl.DPS(target, 0.5))
    finally:
        handle.remove()
    assert seen == [True, False] * len(s.report.entries)  # only the branch that is differentiated
    assert not ours.requires_grad


def test_pndm_makes_its_first_step_twice(tiny):
    """Its second call ends where it began: what is added there belongs to that level."""
    from diffusers import PNDMScheduler

    from fairlead.adapters.diffusers.step import require_order

    pipe, recipe = tiny("sd")
    old = pipe.scheduler
    pipe.scheduler = PNDMScheduler.from_config(old.config, skip_prk_steps=True)
    try:
        plain, _ = steered(pipe, recipe, "cfg(0.6)")
        close(steered(pipe, recipe, "cfgpp(0.6, k=1)")[0], plain)
        levels = Levels(pipe.scheduler)
        pipe.scheduler.set_timesteps(3)
        times = pipe.scheduler.timesteps
        ends = []
        for t in times:
            ends.append(levels.following(t).level.t - 1)
            pipe.scheduler.step(torch.zeros(1, 1), t, torch.zeros(1, 1))
        assert ends[:-1] == times[1:].tolist()
        ours, _ = steered(pipe, recipe, fl.CFG(1.0) + fl.MPGD(target, 5.0))
        assert target(ours) < target(steered(pipe, recipe, "cfg(1)")[0])
        pipe.scheduler.register_to_config(skip_prk_steps=False)
        with pytest.raises(ValueError, match="PNDMScheduler evaluates 4 times"):
            require_order(fl.guide("cfgpp(0.6)"), pipe.scheduler)
    finally:
        pipe.scheduler = old
