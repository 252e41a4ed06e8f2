"""Modular pipelines that take a guider."""

from typing import Any

from fairlead.testing.pipelines.recipe import Recipe, prepare
from fairlead.testing.pipelines.transformers import (
    SHORT,
    qwen_components,
    sd3_components,
    z_image_components,
)
from fairlead.testing.pipelines.unets import CALL, SMALL, sdxl_components
from fairlead.testing.pipelines.videos import ltx_components, wan_components, wan_network


def modular(blocks: str, components: dict[str, Any]) -> Any:
    """The pipeline of a class of blocks, with these components."""
    from diffusers import modular_pipelines

    pipe = getattr(modular_pipelines, blocks)().init_pipeline()
    pipe.update_components(**components)
    hush(pipe._blocks)
    return prepare(pipe)


def hush(blocks: Any) -> None:
    """Silences the progress bars of all loops among the blocks."""
    blocks._progress_bar_config = {"disable": True}
    for block in blocks.sub_blocks.values():
        hush(block)


def wan_two() -> Any:
    """Wan 2.2: two networks, and a guider for each."""
    return modular("Wan22Blocks", {**wan_components(), "transformer_2": wan_network()})


def modular_recipes() -> list[Recipe]:
    """All pipelines of this file."""
    call = {**CALL, **SMALL, "output_type": "pt"}
    video = {**call, **SHORT, "num_frames": 9}
    both = ("transformer", "transformer_2")
    return [
        Recipe(
            "sdxl",
            lambda: modular("StableDiffusionXLAutoBlocks", sdxl_components()),
            call,
            knob=None,
            networks=("unet",),
        ),
        Recipe(
            "sd3",
            lambda: modular("StableDiffusion3AutoBlocks", sd3_components()),
            {**call, **SHORT},
            knob=None,
        ),
        Recipe(
            "qwen_image",
            lambda: modular("QwenImageAutoBlocks", qwen_components()),
            {**call, "max_sequence_length": 256},
            knob=None,
        ),
        Recipe(
            "z_image",
            lambda: modular("ZImageAutoBlocks", z_image_components()),
            {**call, **SHORT},
            knob=None,
        ),
        Recipe(
            "wan",
            lambda: modular("WanBlocks", wan_components()),
            video,
            knob=None,
        ),
        Recipe(
            "wan_two",
            wan_two,
            {**video, "num_inference_steps": 4},
            knob=None,
            networks=both,
        ),
        Recipe(
            "ltx",
            lambda: modular("LTXAutoBlocks", ltx_components()),
            {**video, "height": 32, "width": 32},
            knob=None,
        ),
    ]
