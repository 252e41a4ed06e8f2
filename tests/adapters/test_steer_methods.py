"""Methods that reach into a pipeline's network: attention, regions, image prompts."""

from functools import partial

import pytest
import torch
from tests.adapters import steered as shared
from tests.adapters.steered import steered

close = partial(shared.close, tolerance=1e-5)

LAYERS = {"sd": "mid_block", "sd3": "transformer_blocks.0", "flux": "transformer_blocks.0"}
LAYERS |= {"wan": "blocks.0"}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", ["slg(2", "seg(2"])
def test_perturbed_branches(tiny, name, method):
    pipe, recipe = tiny(name)
    out, s = steered(pipe, recipe, f"cfg(4) + {method}, layers='{LAYERS[name]}')")
    assert s.report.nfe == 9
    assert (out - steered(pipe, recipe, "cfg(4)")[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [*LAYERS, "pixart_alpha", "sdxl"])
def test_a_negative_prompt_inside_attention_costs_no_branch(tiny, name):
    """What guidance-distilled models have instead of a null."""
    pipe, recipe = tiny(name)
    plain, _ = steered(pipe, recipe, "none")
    options = {"prompts": {"negative": "fog"}}
    out, s = steered(pipe, recipe, "none | nag(4)", options)
    assert s.report.nfe == len(s.report.entries)
    assert (out - plain).abs().max() > 1e-3
    same, _ = steered(pipe, recipe, "none | nag(4, a=0.0)", options)
    close(same, plain)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "wan", "ltx"])
def test_regions_are_given_as_pictures(tiny, name):
    pipe, recipe = tiny(name)
    full, _ = steered(pipe, recipe, "cfg(4)")
    off, _ = steered(pipe, recipe, "cfg(1)")

    def under(mask):
        return steered(pipe, recipe, "cfg(4) | region('left')", {"masks": {"left": mask}})[0]

    close(under(torch.ones(8, 8)), full)
    close(under(torch.zeros(8, 8)), off)
    half = under(torch.tensor([[1.0, 0.0]]))
    assert (half - full).abs().max() > 1e-3
    assert (half - off).abs().max() > 1e-3


def test_a_region_acts_where_its_picture_is_white(tiny):
    """One step: the prediction is guided on the left and conditional on the right."""
    pil = pytest.importorskip("PIL.Image")
    pipe, recipe = tiny("sd")
    picture = pil.new("L", (16, 16), 0)
    picture.paste(255, (0, 0, 8, 16))
    steps = {"num_inference_steps": 1}
    options = {"masks": {"left": picture}}
    half, _ = steered(pipe, recipe, "cfg(4) | region('left')", options, **steps)
    full, _ = steered(pipe, recipe, "cfg(4)", **steps)
    off, _ = steered(pipe, recipe, "cfg(1)", **steps)
    close(half[..., :4], full[..., :4])
    close(half[..., 4:], off[..., 4:])


def test_masks_that_do_not_fit_are_named(tiny):
    pipe, recipe = tiny("sd")
    with pytest.raises(ValueError, match=r"the mask 'left' must be \(H, W\) or \(B, H, W\)"):
        steered(pipe, recipe, "cfg(4) | region('left')", {"masks": {"left": torch.ones(4)}})


def test_image_prompts(tiny):
    """An IP-Adapter's image embeddings are rows of the pipeline's batch like any others."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    pipe, recipe = tiny("sd")
    unet = pipe.unet
    width, before = unet.config.cross_attention_dim, dict(unet.attn_processors)
    torch.manual_seed(0)
    processors = {}
    for name, processor in before.items():
        processors[name] = processor
        if "attn2" in name:
            layer = unet.get_submodule(name.removesuffix(".processor"))
            processors[name] = IPAdapterAttnProcessor2_0(
                layer.to_q.in_features, width, num_tokens=(4,), scale=[1.0]
            )
    try:
        unet.set_attn_processor(processors)
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(8, width, 4)])
        unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        given = {"ip_adapter_image_embeds": [torch.randn(2, 1, 8)]}
        own = recipe.run(pipe, **given, **recipe.scale(4.0))
        ours, _ = steered(pipe, recipe, "cfg(4)", **given)
        assert torch.equal(ours, own)
        apart, s = steered(pipe, recipe, "cfg(4)", {"batching": "sequential"}, **given)
        assert s.report.calls == 6
        close(apart, own)
    finally:
        unet.set_attn_processor(before)
        unet.encoder_hid_proj = None
        unet.register_to_config(encoder_hid_dim_type=None)
