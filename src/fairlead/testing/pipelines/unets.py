"""Pipelines with a UNet: Stable Diffusion 1.x, 2.x and XL and what stands on them."""

from typing import Any

import numpy as np
from PIL import Image

from fairlead.testing.pipelines import text
from fairlead.testing.pipelines.recipe import NEGATIVE, PROMPT, Recipe, prepare

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SMALL = {"height": 16, "width": 16}
CALL = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 3,
    "output_type": "latent",
}


def picture(size: int = 16, seed: int = 0) -> Image.Image:
    """A square of random colours."""
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def mask(size: int = 16) -> Image.Image:
    """White, what is to be painted, on the right half."""
    values = np.zeros((size, size), dtype=np.uint8)
    values[:, size // 2 :] = 255
    return Image.fromarray(values)


def vae(channels: int = 4, *, blocks: int = 2, colours: int = 3, **options: Any) -> Any:
    """An `AutoencoderKL` that halves the size once a block but the last."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=colours,
        out_channels=colours,
        latent_channels=channels,
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        force_upcast=False,
        **options,
    )


UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def unet(channels: int = 4, width: int = 16, **options: Any) -> Any:
    """A `UNet2DConditionModel` for latents of 8x8."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **UNET,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        cross_attention_dim=width,
        **{"attention_head_dim": 2, **options},
    )


def control(width: int = 16, **options: Any) -> Any:
    """A `ControlNetModel` for that UNet and pictures of 16x16."""
    from diffusers import ControlNetModel

    return ControlNetModel(
        **UNET,
        in_channels=4,
        cross_attention_dim=width,
        conditioning_embedding_out_channels=(8, 16),
        **{"attention_head_dim": 2, **options},
    )


XL = {
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "transformer_layers_per_block": (1, 2),
}
"""What the UNet of SDXL has beyond: six numbers of time and a pooled embedding of 16."""


def sd(pipeline: str, scheduler: Any, *, channels: int = 4, **extra: Any) -> Any:
    """A pipeline of the first or second Stable Diffusion."""
    import diffusers

    components = {
        "unet": unet(channels),
        "vae": vae(),
        "text_encoder": text.clip(),
        "tokenizer": text.clip_tokenizer(),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        **extra,
    }
    return prepare(getattr(diffusers, pipeline)(**components, requires_safety_checker=False))


def sdxl_components(channels: int = 4) -> dict[str, Any]:
    """The parts of Stable Diffusion XL."""
    return {
        "unet": unet(channels, 32, **XL),
        "vae": vae(),
        "text_encoder": text.clip(),
        "text_encoder_2": text.projected_clip(),
        "tokenizer": text.clip_tokenizer(),
        "tokenizer_2": text.clip_tokenizer(),
        "scheduler": euler(),
    }


def sdxl(pipeline: str, *, channels: int = 4, **extra: Any) -> Any:
    """A pipeline of Stable Diffusion XL."""
    import diffusers

    return prepare(getattr(diffusers, pipeline)(**sdxl_components(channels), **extra))


def ddim(**options: Any) -> Any:
    """The scheduler of the first pipelines."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **options
    )


def pndm() -> Any:
    """The scheduler that Stable Diffusion 1.5 ships with."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)


def euler() -> Any:
    """The scheduler that SDXL ships with."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")


def unet_recipes() -> list[Recipe]:
    """All pipelines of this file."""
    networks = ("unet",)
    image = {"image": picture()}
    paint = {**image, "mask_image": mask(), **SMALL, "strength": 1.0}
    return [
        Recipe(
            "sd",
            lambda: sd("StableDiffusionPipeline", ddim()),
            {**CALL, **SMALL},
            networks=networks,
        ),
        Recipe(
            "sd_v",
            lambda: sd(
                "StableDiffusionPipeline",
                ddim(
                    prediction_type="v_prediction",
                    rescale_betas_zero_snr=True,
                    timestep_spacing="trailing",
                ),
            ),
            {**CALL, **SMALL},
            networks=networks,
        ),
        Recipe(
            "sd_img2img",
            lambda: sd("StableDiffusionImg2ImgPipeline", pndm()),
            {**CALL, **image, "num_inference_steps": 4},
            networks=networks,
        ),
        Recipe(
            "sd_inpaint",
            lambda: sd("StableDiffusionInpaintPipeline", pndm()),
            {**CALL, **paint},
            networks=networks,
        ),
        Recipe(
            "sd_inpaint_trained",
            lambda: sd("StableDiffusionInpaintPipeline", pndm(), channels=9),
            {**CALL, **paint},
            networks=networks,
        ),
        Recipe(
            "sd_controlnet",
            lambda: sd("StableDiffusionControlNetPipeline", ddim(), controlnet=control()),
            {**CALL, **image, **SMALL},
            networks=networks,
        ),
        Recipe(
            "pix2pix",
            lambda: sd("StableDiffusionInstructPix2PixPipeline", pndm(), channels=8),
            {**CALL, **image, "image_guidance_scale": 1.5},
            networks=networks,
        ),
        Recipe(
            "sdxl",
            lambda: sdxl("StableDiffusionXLPipeline"),
            {**CALL, **SMALL},
            networks=networks,
        ),
        Recipe(
            "sdxl_img2img",
            lambda: sdxl("StableDiffusionXLImg2ImgPipeline"),
            {**CALL, **image, "num_inference_steps": 4, "strength": 0.6},
            networks=networks,
        ),
        Recipe(
            "sdxl_inpaint",
            lambda: sdxl("StableDiffusionXLInpaintPipeline"),
            {**CALL, **paint},
            networks=networks,
        ),
        Recipe(
            "sdxl_controlnet",
            lambda: sdxl("StableDiffusionXLControlNetPipeline", controlnet=control(32, **XL)),
            {**CALL, **image, **SMALL},
            networks=networks,
        ),
        Recipe(
            "sdxl_pix2pix",
            lambda: sdxl("StableDiffusionXLInstructPix2PixPipeline", channels=8),
            {**CALL, **image, **SMALL, "image_guidance_scale": 1.5},
            networks=networks,
        ),
    ]
