"""Terms that move the sample before a step, in pipelines and on networks of diffusers."""

from contextlib import contextmanager

import pytest
import torch
from tests.adapters.steered import close, steered
from torch import nn

import fairlead as fl
from fairlead.adapters.diffusers.levels import Levels

BOXES = fl.energy.Boxes({1: (0.0, 0.0, 0.5, 1.0), (2, 3): (0.5, 0.25, 1.0, 1.0)}, centre=0.03)
MOVES = 2 * 2


def layout(**options):
    return fl.Layout(BOXES, 50.0, **{"iterations": 2, "steps": 2, "layers": "**", **options})


@contextmanager
def scheduled(pipe, name, **options):
    """The pipeline under another scheduler."""
    import diffusers

    old = pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(old.config, **options)
    try:
        yield pipe.scheduler
    finally:
        pipe.scheduler = old


class Plain(nn.Module):
    """A UNet of diffusers, called with positions alone."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, text):
        return self.unet(x, t, text)[0]


def denoiser(pipe, recipe, scheduler):
    given = recipe.arguments
    text, null = pipe.encode_prompt(given["prompt"], "cpu", 1, True, given.get("negative_prompt"))
    schedule = fl.schedules.DiscreteVP(scheduler.betas)
    return fl.Denoiser(Plain(pipe.unet), schedule, null={"text": null[0]}), text


def test_a_unet_is_a_denoiser_with_text_attention(tiny):
    """Its maps are found, and moves lower the energy that they give."""
    pipe, recipe = tiny("sd")
    d, text = denoiser(pipe, recipe, pipe.scheduler)
    kinds = {n: layer.kind for n, layer in d.attention_layers.items()}
    cross = [n for n, kind in kinds.items() if kind == "cross"]
    assert cross
    seen = []

    def watched(maps):
        assert list(maps) == cross or set(maps) == set(cross)
        assert all(m.shape[:3] == (1, 1, 2) and m.shape[-1] == text.shape[1] for m in maps.values())
        for m in maps.values():
            torch.testing.assert_close(m.sum(-1), torch.ones_like(m[..., 0]))
        seen.append(BOXES(maps).item())
        return BOXES(maps)

    energy = fl.energy.Function(watched, name="watched", attention=True)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guide = fl.CFG(3.0) + fl.Layout(energy, 200.0, iterations=8, steps=1)
    out = fl.sample(d, {"text": text}, guide=guide, sampler="ddim", steps=4, x=x)
    assert len(seen) == 8
    assert seen[-1] < seen[0]
    assert out.nfe.tolist() == [2 * 4 + 8]


@pytest.mark.parametrize("rule", ["", " | apg(eta=0)"])
def test_a_pipeline_walks_as_fl_sample_does(tiny, rule):
    """The same network, levels and noise, without a pipeline."""
    pipe, recipe = tiny("sd")
    guide = fl.CFG(4.0) + layout()
    if rule:
        guide = guide | fl.APG(eta=0.0)
    with scheduled(pipe, "DDIMScheduler", clip_sample=False, set_alpha_to_one=True) as scheduler:
        ours, s = steered(pipe, recipe, guide)
        plain, _ = steered(pipe, recipe, "cfg(4)" + rule)
        d, text = denoiser(pipe, recipe, scheduler)
        at = Levels(scheduler)
        levels = [at.at(t).level for t in scheduler.timesteps]
        levels.append(at.following(scheduler.timesteps[-1]).level)
        noise = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
        expected = fl.sample(d, {"text": text}, guide=guide, sampler="ddim", levels=levels, x=noise)
    assert s.report.nfe == 2 * 3 + MOVES
    assert s.report.log.backwards == MOVES
    close(ours, expected.x)
    assert (ours - plain).abs().max() / plain.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_other_schedulers_are_told_of_the_move(tiny, tape, name):
    """The step starts at the sample that the network saw, in the scheduler's own units."""
    pipe, recipe = tiny("sd")
    with scheduled(pipe, name) as scheduler, tape(pipe, recipe.networks) as seen:
        _, s = steered(pipe, recipe, fl.CFG(4.0) + layout())
        inputs = []
        handle = pipe.unet.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.append(args[0] if args else kwargs["sample"]),
            with_kwargs=True,
        )
        try:
            steered(pipe, recipe, fl.CFG(4.0) + layout())
        finally:
            handle.remove()
    assert s.report.nfe == 2 * 3 + MOVES
    # two readings, then the pipeline's own call of two rows, in each of the first two steps
    own = [x for x in inputs if len(x) == 2][-3:]
    for step, x in zip(seen.steps[-3:], own, strict=True):
        sample = step[2][0]
        at = [t.item() for t in scheduler.timesteps].index(float(step[1]))
        scale = (1 + scheduler.sigmas[at] ** 2) ** 0.5 if "Euler" in name else 1.0
        close(sample / scale, x[:1], 1e-5)


def test_off_is_the_pipeline_to_the_bit(tiny):
    pipe, recipe = tiny("sd")
    plain = recipe.run(pipe)
    scale = recipe.arguments.get("guidance_scale", 7.5)
    for off in (layout(steps=0), fl.Layout(BOXES, 0.0), layout(threshold=float("inf"))):
        out, s = steered(pipe, recipe, fl.CFG(scale) + off)
        assert s.report.nfe == 6
        close(out, plain, 1e-6)


def test_videos_have_boxes_a_frame():
    from diffusers import UNet3DConditionModel

    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = UNet3DConditionModel(
                sample_size=8,
                block_out_channels=(8, 16),
                down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
                up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
                norm_num_groups=4,
                layers_per_block=1,
                cross_attention_dim=16,
                attention_head_dim=4,
            )

        def forward(self, x, t, text):
            return self.unet(x, t, text)[0]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, text = Video().eval().requires_grad_(False), torch.randn(2, 6, 16)
    boxes = [(i / 6, 0.0, i / 6 + 0.5, 1.0) for i in range(3)]
    energies = []

    def watched(maps):
        assert {m.shape[:2] for m in maps.values()} == {(2, 3)}
        energies.append(fl.energy.Boxes({1: boxes}, centre=0.03)(maps))
        return energies[-1]

    energy = fl.energy.Function(watched, name="watched", attention=True)
    d = fl.Denoiser(network, fl.schedules.VP(), null={"text": torch.zeros(6, 16)})
    guide = fl.CFG(4.0) + fl.Layout(energy, 50.0, iterations=4, steps=1)
    fl.sample(d, {"text": text}, guide=guide, sampler="ddim", steps=2, shape=(2, 4, 3, 8, 8))
    assert len(energies) == 4
    assert bool((energies[-1] < energies[0]).all())
    # each sample's maps are of its own frames: alone it is moved as beside the other
    alone = []

    def first(maps):
        alone.append(fl.energy.Boxes({1: boxes}, centre=0.03)(maps))
        return alone[-1]

    energy = fl.energy.Function(first, name="first", attention=True)
    guide = fl.CFG(4.0) + fl.Layout(energy, 50.0, iterations=4, steps=1)
    fl.sample(d, {"text": text[:1]}, guide=guide, sampler="ddim", steps=2, shape=(1, 4, 3, 8, 8))
    torch.testing.assert_close(torch.cat(alone), torch.stack(energies)[:, 0], rtol=1e-4, atol=1e-4)


def test_elucd_moves_a_pipelines_sample(tiny):
    pipe, recipe = tiny("sd")
    judge = fl.energy.Classifier(lambda z: z.mean((2, 3)), 1)
    plain, _ = steered(pipe, recipe, "cfg(4)")
    moved, s = steered(pipe, recipe, fl.CFG(4.0) + fl.EluCD(judge, 0.1, form="edm"))
    assert s.report.log.gradients == 3
    assert (moved - plain).abs().max() > 1e-3


def test_what_cannot_be_moved_is_refused(tiny):
    pipe, recipe = tiny("sd")
    with (
        scheduled(pipe, "HeunDiscreteScheduler"),
        pytest.raises(ValueError, match="HeunDiscreteScheduler evaluates 2 times a step"),
    ):
        steered(pipe, recipe, fl.CFG(4.0) + layout())
    with (
        scheduled(pipe, "PNDMScheduler", skip_prk_steps=True),
        pytest.raises(ValueError, match="moves the sample before each step, and PNDM"),
    ):
        steered(pipe, recipe, fl.CFG(4.0) + layout())
    other, its = tiny("flux")
    with pytest.raises(ValueError, match=r"layout: .*cross"):
        steered(other, its, layout())
    pipe, recipe = tiny("sd_controlnet")
    with pytest.raises(ValueError, match="leave out the term that moves it, or the ControlNet"):
        steered(pipe, recipe, fl.CFG(4.0) + layout())


def test_positions_of_words_are_those_of_the_pipelines_tokens(tiny):
    pipe, _ = tiny("sd")
    prompt = "a lighthouse in a storm, a lighthouse at sea"
    tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(prompt).input_ids)
    for word, occurrence in (("lighthouse", 0), ("lighthouse", 1), ("storm", 0)):
        at = fl.energy.word_positions(pipe.tokenizer, prompt, word, occurrence=occurrence)
        assert "".join(tokens[i] for i in at) == f"{word}</w>"
    first, second = (
        fl.energy.word_positions(pipe.tokenizer, prompt, "lighthouse", occurrence=i) for i in (0, 1)
    )
    assert first[-1] < second[0]
    with pytest.raises(ValueError, match="phrase 'ship' stands 0 times in 'a lighthouse"):
        fl.energy.word_positions(pipe.tokenizer, prompt, "ship")
    with pytest.raises(ValueError, match=r"stands 1 times in .*, and occurrence 1 was asked for"):
        fl.energy.word_positions(pipe.tokenizer, prompt, "storm", occurrence=1)
