"""(f) and (g): a pipeline of diffusers steered by a guide, against the pipeline's own guidance.

(f) What a step costs beyond its network, which is a stub: the slope of the CPU time of whole calls
over the number of steps. (g) Steps a second of CFG with one perturbed branch on a transformer of
some 500 M parameters, in bfloat16 on a GPU: all branches in one batch, against a guider of
diffusers driven by hand, one branch after another.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fairlead as fl
from benchmarks.timing import Ratio

PIPELINES = ("sd", "sdxl", "sd3", "flux", "pixart_alpha", "wan")


def steps(names: tuple[str, ...] = PIPELINES, *, repeats: int = 15) -> dict[str, Ratio]:
    """(f) for tiny pipelines by name, in microseconds a step."""
    from fairlead.testing.pipelines import PIPELINES as RECIPES
    from fairlead.testing.pipelines import tiny_pipeline

    found = {}
    for name in names:
        pipe, recipe = tiny_pipeline(name), RECIPES[name]
        for network in recipe.networks:
            stub(getattr(pipe, network))

        def own(n: int, pipe: Any = pipe, recipe: Any = recipe) -> None:
            recipe.run(pipe, num_inference_steps=n, **recipe.scale(4.0))

        def ours(n: int, pipe: Any = pipe, recipe: Any = recipe) -> None:
            with fl.steer(pipe, "cfg(4)"):
                recipe.run(pipe, num_inference_steps=n)

        found[name] = slopes(ours, own, 10, 210, repeats)
    return found


def stub(network: Any) -> None:
    """Makes a network return stored tensors, at the cost of a dictionary."""
    stored: dict[tuple[int, ...], Tensor] = {}

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        x = args[0] if args else kwargs["hidden_states"]
        shape = tuple(x.shape)
        if shape not in stored:
            channels = network.config.out_channels if x.ndim > 3 else shape[1]
            stored[shape] = torch.randn(shape[0], channels, *shape[2:], dtype=x.dtype)
        return (stored[shape],)

    network.__dict__["forward"] = forward


def slopes(
    ours: Callable[[int], None],
    theirs: Callable[[int], None],
    few: int,
    many: int,
    repeats: int,
    clock: Callable[[], float] = time.thread_time,
) -> Ratio:
    """What one step more costs, of two callables in turn, in microseconds."""

    def slope(call: Callable[[int], None]) -> float:
        took = []
        for n in (few, many):
            start = clock()
            call(n)
            took.append(clock() - start)
        return (took[1] - took[0]) / (many - few) * 1e6

    slope(ours), slope(theirs)
    pairs = [(slope(ours), slope(theirs)) for _ in range(repeats)]
    low, median, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return Ratio(a, b, median, low, high)


def transformer(device: str, layers: int = 13, heads: int = 16) -> Any:
    """A transformer of SD3's kind with random weights, about 500 M parameters."""
    from diffusers import SD3Transformer2DModel

    with torch.device(device):
        return (
            SD3Transformer2DModel(
                sample_size=32,
                in_channels=16,
                num_layers=layers,
                attention_head_dim=64,
                num_attention_heads=heads,
                joint_attention_dim=1024,
                caption_projection_dim=64 * heads,
                pooled_projection_dim=1024,
                out_channels=16,
                pos_embed_max_size=64,
            )
            .to(torch.bfloat16)
            .eval()
            .requires_grad_(False)
        )


def on_gpu(batches: tuple[int, ...] = (1, 4), *, toy: bool = False) -> dict[str, Ratio]:
    """(g) by batch size, in microseconds a step; nothing without a GPU.

    Args:
        batches: Batch sizes.
        toy: A tiny network on whatever there is: says that it runs, and nothing of speed.
    """
    if not (torch.cuda.is_available() or toy):
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = transformer(device, 2, 1) if toy else transformer(device)
    found = {}
    steps, repeats = (6, 2) if toy else (24, 9)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    for batch in batches:
        for batching in ("batched", "auto"):
            name = f"{count:.0f} M parameters, batch {batch}, {batching}"
            found[name] = branches(network, device, batch, batching, steps, repeats)
    return found


def branches(
    network: Any, device: str, batch: int, batching: str, steps: int, repeats: int
) -> Ratio:
    """CFG and one perturbed branch, ours in a pipeline against a guider driven by hand."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from diffusers.guiders import SmoothedEnergyGuidance
    from diffusers.hooks import SmoothedEnergyGuidanceConfig

    pipe = StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        text_encoder_3=None,
        tokenizer=None,
        tokenizer_2=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    like: Any = {"device": device, "dtype": torch.bfloat16}
    text = tuple(torch.randn(batch, 77, 1024, **like) for _ in range(2))
    pooled = tuple(torch.randn(batch, 1024, **like) for _ in range(2))
    middle = len(network.transformer_blocks) // 2
    # of their guiders the one that runs on this network; its hook is never applied (0.42.1), so
    # that these are three plain calls: the least that a guider can cost
    fqn = "transformer_blocks"
    config = SmoothedEnergyGuidanceConfig(indices=[middle], fqn=fqn)
    guider = SmoothedEnergyGuidance(4.0, seg_guidance_config=[config])

    def ours(n: int) -> None:
        guide = f"cfg(4) + pag(3, layers='transformer_blocks.{middle}')"
        with fl.steer(pipe, guide, batching=batching, check=False):  # type: ignore[arg-type]
            pipe(
                prompt_embeds=text[0],
                negative_prompt_embeds=text[1],
                pooled_prompt_embeds=pooled[0],
                negative_pooled_prompt_embeds=pooled[1],
                height=256,
                width=256,
                output_type="latent",
                num_inference_steps=n,
            )
        finish(device)

    @torch.no_grad()
    def theirs(n: int) -> None:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(n, device=device)
        x = torch.randn(batch, 16, 32, 32, **like)
        for i, t in enumerate(scheduler.timesteps):
            # counted from 1: their window leaves out step 0
            guider.set_state(step=i + 1, num_inference_steps=n + 2, timestep=t)
            given = {"encoder_hidden_states": text, "pooled_projections": pooled}
            states = guider.prepare_inputs(given)
            for state in states:
                guider.prepare_models(network)
                state.noise_pred = network(
                    hidden_states=x,
                    timestep=t.expand(batch),
                    encoder_hidden_states=state.encoder_hidden_states,
                    pooled_projections=state.pooled_projections,
                    return_dict=False,
                )[0]
                guider.cleanup_models(network)
            assert len(states) == 3
            x = scheduler.step(guider(states).pred, t, x, return_dict=False)[0]
        finish(device)

    return slopes(ours, theirs, 4, steps, repeats, time.perf_counter)


def finish(device: str) -> None:
    """Waits for all that was asked of a device."""
    if device == "cuda":
        torch.cuda.synchronize()
