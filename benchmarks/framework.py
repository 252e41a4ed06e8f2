"""(a) Time of a guided step beyond the network, against a diffusers guider driven by hand.

The network is a stub that returns a stored tensor, so what is left is the framework: planning,
preparing inputs, combining. Both make one stubbed call a branch on the same 2x4x16x16 tensors.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fairlead as fl
from benchmarks.timing import Ratio, ratio
from fairlead.condition import Condition
from fairlead.guidance.context import Run
from fairlead.guidance.evaluator import Evaluator
from fairlead.guidance.guided import GuidedModel

B, SHAPE = 2, (4, 16, 16)


class Stub(nn.Module):
    """Returns stored predictions; has one attention layer that perturbations can hook."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = torch.randn(3 * B, *SHAPE)
        self.attention_layers = {"mid": nn.Identity()}

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.stored[: x.shape[0]]


def ours(text: str, **options: str) -> Callable[[], object]:
    """One guided evaluation as `fl.sample` makes it, checks and report included."""
    schedule = fl.schedules.EDM()
    denoiser = fl.Denoiser(Stub(), schedule, "sample", null={"label": 10})
    states = {"cond": Condition({"label": torch.arange(B)})}
    evaluator = Evaluator(denoiser, states, **options)
    model = GuidedModel(fl.guide(text), evaluator, Run(0, range(B), 50))
    x, levels = torch.randn(B, *SHAPE), schedule.grid(50)[:-1]
    step = iter(range(10**9))

    def call() -> object:
        level = levels[next(step) % 50]
        if len(model.run.report.entries) >= 50:  # as long as one run is
            model.run.report.entries.clear()
        model.begin(level)
        return model(x, level)

    return call


def theirs(guider: object, denoiser: object) -> Callable[[], object]:
    """One guided step of a modular pipeline: its denoise block without the transformer."""
    stored, latents = torch.randn(B, *SHAPE), torch.randn(B, *SHAPE)
    embeddings = (torch.randn(B, 4), torch.randn(B, 4))
    stub, time = Stub(), torch.tensor(500)
    step = iter(range(10**9))

    def call() -> object:
        t = time.expand(B)
        guider.set_state(step=next(step) % 50, num_inference_steps=50, timestep=time)
        states = guider.prepare_inputs({"encoder_hidden_states": embeddings})
        for state in states:
            guider.prepare_models(denoiser)
            state.noise_pred = stub(latents, t, label=state.encoder_hidden_states)
            guider.cleanup_models(denoiser)
        return guider(states).pred

    assert stored.shape == latents.shape
    return call


def unet() -> object:
    """A small real network for the layer hooks of the guider; it is never called."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=4,
        attention_head_dim=8,
    )


def rows() -> dict[str, Ratio]:
    """CFG, APG and CFG + PAG, each against the guider of the same rule."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    from diffusers.guiders import (
        AdaptiveProjectedGuidance,
        ClassifierFreeGuidance,
        PerturbedAttentionGuidance,
    )
    from diffusers.hooks import LayerSkipConfig

    pag = LayerSkipConfig(
        indices=[0],
        fqn="mid_block.attentions.0.transformer_blocks",
        skip_attention=False,
        skip_attention_scores=True,
        skip_ff=False,
    )
    peers = {
        "cfg(4)": ClassifierFreeGuidance(4.0),
        "cfg(4) | apg(r=15, beta=-0.5)": AdaptiveProjectedGuidance(
            4.0,
            adaptive_projected_guidance_momentum=-0.5,
            adaptive_projected_guidance_rescale=15.0,
            eta=0.0,
        ),
        "cfg(4) + pag(3)": PerturbedAttentionGuidance(
            4.0,
            perturbed_guidance_scale=3.0,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
            perturbed_guidance_config=[pag],
        ),
    }
    module, out = unet(), {}
    with torch.no_grad():
        for text, guider in peers.items():
            for batching in ("sequential", "batched"):
                call = ours(text, batching=batching)
                out[f"{text}, {batching}"] = ratio(call, theirs(guider, module))
    return out
