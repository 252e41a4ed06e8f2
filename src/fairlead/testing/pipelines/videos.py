"""Video and audio pipelines: Wan, LTX, CogVideoX, HunyuanVideo, AudioLDM 2, Stable Audio."""

from typing import Any

from fairlead.testing.pipelines import text
from fairlead.testing.pipelines.recipe import Recipe, prepare
from fairlead.testing.pipelines.transformers import SHORT, flow
from fairlead.testing.pipelines.unets import CALL, SMALL, ddim, vae


def wan_network() -> Any:
    """A `WanTransformer3DModel`."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def wan_vae() -> Any:
    """An `AutoencoderKLWan` that shrinks sides by 4 and frames by 2."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_spatial=4,
        scale_factor_temporal=2,
    )


def wan_components() -> dict[str, Any]:
    """The parts of Wan 2.1."""
    from diffusers import UniPCMultistepScheduler

    return {
        "transformer": wan_network(),
        "vae": wan_vae(),
        "text_encoder": text.t5(),
        "tokenizer": text.t5_tokenizer(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def wan(*, second: bool = False) -> Any:
    """Wan 2.1, or 2.2 with a `second` network for the lower half of the noise levels."""
    from diffusers import WanPipeline

    extra = {"transformer_2": wan_network(), "boundary_ratio": 0.875} if second else {}
    return prepare(WanPipeline(**wan_components(), **extra))


def ltx_components() -> dict[str, Any]:
    """The parts of LTX-Video."""
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    network = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )
    code = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return {
        "transformer": network,
        "vae": code,
        "text_encoder": text.t5(),
        "tokenizer": text.t5_tokenizer(),
        "scheduler": flow(),
    }


def ltx() -> Any:
    """LTX-Video."""
    from diffusers import LTXPipeline

    return prepare(LTXPipeline(**ltx_components()))


def cogvideox() -> Any:
    """CogVideoX."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=32,
    )
    code = AutoencoderKLCogVideoX(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
    return prepare(
        CogVideoXPipeline(
            transformer=network,
            vae=code,
            text_encoder=text.t5(),
            tokenizer=text.t5_tokenizer(),
            scheduler=cogvideox_scheduler(),
        )
    )


def cogvideox_scheduler() -> Any:
    """The scheduler that CogVideoX ships with."""
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)


def hunyuan_video() -> Any:
    """HunyuanVideo, which takes a scale as input and can be guided as well."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )

    network = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
        guidance_embeds=True,
    )
    code = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return prepare(
        HunyuanVideoPipeline(
            transformer=network,
            vae=code,
            text_encoder=text.llama(),
            tokenizer=text.llama_tokenizer(),
            text_encoder_2=text.clip(),
            tokenizer_2=text.clip_tokenizer(),
            scheduler=flow(shift=7.0),
        )
    )


def audioldm2() -> Any:
    """AudioLDM 2."""
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
    )
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2LMHeadModel,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )

    network = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(8, 16),
        attention_head_dim=2,
    )
    letters = text.roberta_tokenizer()
    clap = ClapModel(
        ClapConfig(
            text_config={
                "vocab_size": len(letters),
                "pad_token_id": letters.pad_token_id,
                "bos_token_id": letters.bos_token_id,
                "eos_token_id": letters.eos_token_id,
                "hidden_size": 8,
                "intermediate_size": 16,
                "num_attention_heads": 1,
                "num_hidden_layers": 1,
                "projection_dim": 8,
            },
            audio_config={
                "spec_size": 8,
                "window_size": 4,
                "num_mel_bins": 8,
                "depths": [1, 1],
                "num_attention_heads": [1, 1],
                "num_hidden_layers": 1,
                "hidden_size": 192,
                "projection_dim": 8,
                "patch_size": 2,
                "patch_stride": 2,
                "patch_embed_input_channels": 4,
            },
            projection_dim=16,
        )
    )
    language = GPT2LMHeadModel(
        GPT2Config(
            n_embd=16,
            n_head=1,
            n_layer=1,
            vocab_size=64,
            n_positions=99,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    language.config.max_new_tokens = 4
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3, 5]],
            normalize_before=False,
        )
    )
    return prepare(
        AudioLDM2Pipeline(
            unet=network,
            vae=vae(colours=1),
            text_encoder=clap,
            tokenizer=letters,
            text_encoder_2=text.t5(),
            tokenizer_2=text.t5_tokenizer(),
            language_model=language,
            projection_model=AudioLDM2ProjectionModel(16, 16, 16),
            feature_extractor=ClapFeatureExtractor(hop_length=7900),
            vocoder=vocoder,
            scheduler=ddim(),
        )
    )


def stable_audio() -> Any:
    """Stable Audio Open."""
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    network = StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=8,
        cross_attention_input_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
    )
    code = AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=4,
    )
    return prepare(
        StableAudioPipeline(
            transformer=network,
            vae=code,
            text_encoder=text.t5(),
            tokenizer=text.t5_tokenizer(),
            projection_model=StableAudioProjectionModel(
                text_encoder_dim=16, conditioning_dim=8, min_value=0, max_value=32
            ),
            scheduler=CosineDPMSolverMultistepScheduler(
                sigma_min=0.3,
                sigma_max=500,
                prediction_type="v_prediction",
                sigma_data=1.0,
                sigma_schedule="exponential",
            ),
        )
    )


def video_recipes() -> list[Recipe]:
    """All pipelines of this file."""
    call = {**CALL, **SMALL, "num_frames": 9, **SHORT}
    template = {"template": "Show {}", "crop_start": 2}
    return [
        Recipe("wan", wan, call),
        Recipe(
            "wan_two",
            lambda: wan(second=True),
            {**call, "num_inference_steps": 4},
            networks=("transformer", "transformer_2"),
        ),
        Recipe("ltx", ltx, {**call, "height": 32, "width": 32}),
        Recipe("cogvideox", cogvideox, call),
        Recipe(
            "hunyuan_video",
            hunyuan_video,
            {**call, "prompt_template": template, "guidance_scale": 6.0},
            knob="true_cfg_scale",
        ),
        Recipe("audioldm2", audioldm2, {**CALL, "audio_length_in_s": 0.004}, networks=("unet",)),
        Recipe("stable_audio", stable_audio, {**CALL, "audio_end_in_s": 2.0}),
    ]
