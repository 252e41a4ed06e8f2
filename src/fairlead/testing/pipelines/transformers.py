"""Picture pipelines with a transformer: SD3, Flux, PixArt, Qwen-Image, Z-Image, Lumina 2."""

from typing import Any

from fairlead.testing.pipelines import text
from fairlead.testing.pipelines.recipe import Recipe, prepare
from fairlead.testing.pipelines.unets import CALL, SMALL, ddim, picture, vae

FLOW_VAE: dict[str, Any] = {
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.06,
    "scaling_factor": 1.5,
}
SHORT = {"max_sequence_length": 32}


def flow(**options: Any) -> Any:
    """The scheduler of flow-matching pipelines."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3_components() -> dict[str, Any]:
    """The parts of Stable Diffusion 3."""
    from diffusers import SD3Transformer2DModel

    return {
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
        ),
        "vae": vae(**FLOW_VAE),
        "text_encoder": text.projected_clip(),
        "text_encoder_2": text.projected_clip(),
        "text_encoder_3": text.t5(32),
        "tokenizer": text.clip_tokenizer(),
        "tokenizer_2": text.clip_tokenizer(),
        "tokenizer_3": text.t5_tokenizer(),
        "scheduler": flow(shift=3.0),
    }


def sd3(pipeline: str = "StableDiffusion3Pipeline") -> Any:
    """A pipeline of Stable Diffusion 3."""
    import diffusers

    return prepare(getattr(diffusers, pipeline)(**sd3_components()))


def flux(pipeline: str = "FluxPipeline", *, embedded: bool = False) -> Any:
    """A pipeline of FLUX.1; `embedded` networks take a scale as input."""
    import diffusers
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=embedded,
    )
    return prepare(
        getattr(diffusers, pipeline)(
            transformer=network,
            vae=vae(**FLOW_VAE),
            text_encoder=text.clip(),
            text_encoder_2=text.t5(),
            tokenizer=text.clip_tokenizer(),
            tokenizer_2=text.t5_tokenizer(),
            scheduler=flow(),
        )
    )


def pixart(pipeline: str, *, sized: bool = False) -> Any:
    """PixArt: its network also predicts a variance; a `sized` one is told size and aspect."""
    import diffusers
    from diffusers import PixArtTransformer2DModel

    network = PixArtTransformer2DModel(
        sample_size=128 if sized else 8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,  # the embedding of size and aspect takes a third of the width each
        cross_attention_dim=24,
        caption_channels=16,
        norm_type="ada_norm_single",
        use_additional_conditions=sized,
    )
    return prepare(
        getattr(diffusers, pipeline)(
            transformer=network,
            vae=vae(),
            text_encoder=text.t5(),
            tokenizer=text.t5_tokenizer(),
            scheduler=ddim(),
        )
    )


def qwen_components() -> dict[str, Any]:
    """The parts of Qwen-Image."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    return {
        "transformer": QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "text_encoder": text.qwen_vision(),
        "tokenizer": text.qwen_tokenizer(),
        "scheduler": flow(),
    }


def qwen_image() -> Any:
    """Qwen-Image, which rescales the guided prediction to the length of the conditional one."""
    from diffusers import QwenImagePipeline

    pipe = prepare(QwenImagePipeline(**qwen_components()))
    # the usual template has 34 words, and each would be a row of tokens here
    pipe.prompt_template_encode = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    pipe.prompt_template_encode_start_idx = len("?user\n")
    return pipe


def z_image_components() -> dict[str, Any]:
    """The parts of Z-Image."""
    from diffusers import ZImageTransformer2DModel

    return {
        "transformer": ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        "vae": vae(scaling_factor=0.4, shift_factor=0.1),
        "text_encoder": text.qwen3(),
        "tokenizer": text.qwen_tokenizer(),
        "scheduler": flow(),
    }


def z_image() -> Any:
    """Z-Image, whose network takes and returns lists."""
    from diffusers import ZImagePipeline

    return prepare(ZImagePipeline(**z_image_components()))


def lumina2() -> Any:
    """Lumina 2, which turns the sign of what its network predicts."""
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    network = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(128, 32, 32),
        cap_feat_dim=16,
    )
    return prepare(
        Lumina2Pipeline(
            transformer=network,
            vae=vae(**FLOW_VAE),
            text_encoder=text.gemma(),
            tokenizer=text.gemma_tokenizer(),
            scheduler=flow(),
        )
    )


def transformer_recipes() -> list[Recipe]:
    """All pipelines of this file."""
    call = {**CALL, **SMALL}
    image = {**call, "image": picture(), "num_inference_steps": 4, "strength": 0.6}
    pix = {**call, "use_resolution_binning": False, **SHORT}
    large = {"height": 64, "width": 64, "max_sequence_length": 64}
    true = "true_cfg_scale"
    return [
        Recipe("sd3", sd3, {**call, **SHORT}),
        Recipe("sd3_img2img", lambda: sd3("StableDiffusion3Img2ImgPipeline"), {**image, **SHORT}),
        Recipe("flux", flux, {**call, **SHORT}, knob=true),
        Recipe(
            "flux_embedded",
            lambda: flux(embedded=True),
            {**call, **SHORT, "guidance_scale": 3.5},
            knob=true,
        ),
        Recipe("pixart_alpha", lambda: pixart("PixArtAlphaPipeline", sized=True), pix),
        Recipe("pixart_sigma", lambda: pixart("PixArtSigmaPipeline"), pix),
        Recipe("qwen_image", qwen_image, {**call, "max_sequence_length": 64}, knob=true),
        Recipe("z_image", z_image, {**call, **SHORT}, off=0.0),
        Recipe("lumina2", lumina2, {**CALL, **large, "system_prompt": "Paint"}),
    ]
