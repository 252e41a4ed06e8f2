"""What else a user does with a pipeline while it is steered, and what is refused."""

import threading

import pytest
import torch
from tests.adapters.steered import close, steered
from torch import nn

import fairlead as fl
from fairlead.adapters.diffusers.patch import MARK

OFFLOADED = {"sd": "mid_block", "sd3": "transformer_blocks.0", "wan": "blocks.0"}


def untouched(pipe, recipe, before):
    cls, own, scheduler = before
    assert type(pipe) is cls
    assert "step" not in vars(scheduler)
    for name in recipe.networks:
        network = getattr(pipe, name)
        assert MARK not in vars(network)
        assert vars(network).get("_compiled_call_impl") is own.get(name)


@pytest.fixture
def restored():
    """Checks after a test that nothing is left in the pipelines it names."""
    known = []

    def watch(pipe, recipe):
        own = {n: vars(getattr(pipe, n)).get("_compiled_call_impl") for n in recipe.networks}
        known.append((pipe, recipe, (type(pipe), own, pipe.scheduler)))

    yield watch
    for pipe, recipe, before in known:
        untouched(pipe, recipe, before)


@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored(tiny, restored, name, error):
    pipe, recipe = tiny(name)
    restored(pipe, recipe)
    plain = recipe.run(pipe, **recipe.scale(4.0))

    def stop(pipe, i, t, kwargs):
        raise error("stop")

    with pytest.raises(error), fl.steer(pipe, "cfg(4) | apg(eta=0)"):
        recipe.run(pipe, callback_on_step_end=stop)
    assert torch.equal(recipe.run(pipe, **recipe.scale(4.0)), plain)


def test_an_error_in_the_network_restores_too(tiny, restored):
    pipe, recipe = tiny("sd")
    restored(pipe, recipe)

    def fail(*_):
        raise RuntimeError("inside")

    handle = pipe.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="inside"), fl.steer(pipe, "cfg(4)"):
        recipe.run(pipe)
    handle.remove()


def test_several_calls_in_one_block(tiny, restored):
    pipe, recipe = tiny("flux")
    restored(pipe, recipe)
    with fl.steer(pipe, "cfg(4)") as s:
        first, second = recipe.run(pipe), recipe.run(pipe, prompt="a red car", seed=1)
        assert s.report.nfe == 6
    assert torch.equal(first, recipe.run(pipe, **recipe.scale(4.0)))
    own = recipe.run(pipe, prompt="a red car", seed=1, **recipe.scale(4.0))
    assert torch.equal(second, own)


def test_nested_is_refused(tiny, restored):
    pipe, recipe = tiny("sd")
    restored(pipe, recipe)
    with (
        fl.steer(pipe, "cfg(4)"),
        pytest.raises(RuntimeError, match="steered already; join the guides"),
        fl.steer(pipe, "cfg(2)"),
    ):
        pass


def test_a_shared_network_is_steered_by_one_pipeline_at_a_time(tiny, restored):
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe, recipe = tiny("sd")
    restored(pipe, recipe)
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    seen = []

    def inside(_, i, t, kwargs):
        with fl.steer(other, "cfg(2)"), pytest.raises(RuntimeError, match="another pipeline"):
            other("fog", image=torch.rand(1, 3, 16, 16), num_inference_steps=2)
        seen.append(i)
        return kwargs

    with fl.steer(pipe, "cfg(4)"):
        recipe.run(pipe, callback_on_step_end=inside)
    assert seen == [0, 1, 2]


def test_two_pipelines_in_two_threads(tiny):
    jobs = {n: tiny(n) for n in ("sd", "flux")}
    alone = {n: steered(p, r, "cfg(4) + tsg(2)")[0] for n, (p, r) in jobs.items()}
    made, start = {}, threading.Barrier(2)

    def work(name):
        pipe, recipe = jobs[name]
        generator = torch.Generator().manual_seed(0)
        start.wait()
        with fl.steer(pipe, "cfg(4) + tsg(2)"):
            made[name] = pipe(**{**recipe.arguments, "generator": generator}, return_dict=False)[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, latents in alone.items():
        assert torch.equal(made[name], latents)


def test_callbacks_see_the_pipeline_and_change_the_latents(tiny):
    pipe, recipe = tiny("sd")
    seen = []

    def halve(pipe, i, t, kwargs):
        pipe._guidance_scale = 100.0  # inert
        seen.append((i, kwargs["latents"].shape))
        return {"latents": kwargs["latents"] * 0.5}

    ours, _ = steered(pipe, recipe, "cfg(4)", callback_on_step_end=halve)
    assert seen == [(i, (1, 4, 8, 8)) for i in range(3)]
    changed, _ = steered(pipe, recipe, "cfg(4)")
    assert (ours - changed).abs().max() > 1e-3


def test_saving_while_steered(tiny, tmp_path, restored):
    pipe, recipe = tiny("sd")
    restored(pipe, recipe)
    with fl.steer(pipe, "cfg(4)"):
        recipe.run(pipe)
        pipe.save_pretrained(tmp_path / "a", safe_serialization=True)
    pipe.save_pretrained(tmp_path / "b", safe_serialization=True)
    files = [
        sorted(p.relative_to(r) for p in r.rglob("*") if p.is_file()) for r in tmp_path.iterdir()
    ]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_class_looks_as_before(tiny):
    pipe, _ = tiny("sd")
    cls = type(pipe)
    with fl.steer(pipe, "cfg(4)"):
        assert isinstance(pipe, cls)
        assert type(pipe).__name__ == cls.__name__
        assert set(pipe.components) == set(cls(**pipe.components).components)


def test_random_states_are_those_without_us(tiny):
    """Learning the layout draws nothing: neither globally nor from the call's generator."""
    pipe, recipe = tiny("sd")
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(3)
    arguments = {**recipe.arguments, "generator": generator, **recipe.scale(4.0)}
    own = pipe(**arguments, return_dict=False)[0]
    after = (torch.get_rng_state(), generator.get_state())
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(3)
    with fl.steer(pipe, "cfg(4)"):
        ours = pipe(**{**recipe.arguments, "generator": generator}, return_dict=False)[0]
    assert torch.equal(ours, own)
    assert torch.equal(torch.get_rng_state(), after[0])
    assert torch.equal(generator.get_state(), after[1])


def test_two_prompts_two_images_and_a_scale_each(tiny):
    pipe, recipe = tiny("sd")
    prompts = {"prompt": ["a lighthouse", "a red car"], "negative_prompt": ["fog", "fog"]}
    each = [
        steered(pipe, recipe, f"cfg({w})", **prompts, num_images_per_prompt=2)[0] for w in (3, 5)
    ]
    both, s = steered(pipe, recipe, "cfg([3, 5, 3, 5])", **prompts, num_images_per_prompt=2)
    close(both, torch.stack([each[0][0], each[1][1], each[0][2], each[1][3]]))
    assert s.report.nfe == 6


@pytest.mark.parametrize("name", ["flux", "wan", "sd3"])
def test_a_scale_for_each_sample_where_the_loop_reads_a_local(tiny, name):
    pipe, recipe = tiny(name)
    prompts = {"prompt": ["a lighthouse", "a red car"], "negative_prompt": ["fog", "fog"]}
    mixed, s = steered(pipe, recipe, "cfg([1, 5])", **prompts)
    full, _ = steered(pipe, recipe, "cfg(5)", **prompts)
    off, _ = steered(pipe, recipe, "cfg(1)", **prompts)
    close(mixed[1], full[1])
    close(mixed[0], off[0])
    assert s.report.nfe.tolist() == [3, 6]


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_schedules_save_evaluations(tiny, name):
    pipe, recipe = tiny(name)
    some, s = steered(pipe, recipe, "cfg(4) | interval(0, 0.5)")
    assert s.report.nfe == 5
    fixed, t = steered(pipe, recipe, "cfg(4) | interval(0, 0.5)", {"fixed_rows": True})
    close(fixed, some)
    assert t.report.nfe == (6 if name == "sd" else 5)  # one row a branch and call, as ever


def test_policies_skip_branches(tiny):
    pipe, recipe = tiny("sd")
    out, s = steered(pipe, recipe, "cfg(4) | adaptive(-1.0, guard=0.3)")
    assert s.report.nfe == 5  # the switch is seen at step 1 and acts at step 2
    same, _ = steered(pipe, recipe, "cfg(4) | interval(0, 0.66)")
    close(out, same)


@pytest.mark.parametrize("name", ["wan", "flux", "ltx"])
def test_first_block_cache_keeps_a_state_for_each_branch(tiny, name):
    from diffusers import FirstBlockCacheConfig

    pipe, recipe = tiny(name)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    try:
        steps = {"num_inference_steps": 6}
        own = recipe.run(pipe, **recipe.scale(4.0), **steps)
        ours, _ = steered(pipe, recipe, "cfg(4)", **steps)
        assert torch.equal(ours, own)
        # a further branch of negligible weight must not touch the states of the others
        third, s = steered(pipe, recipe, "cfg(4) + tsg(1.000001)", **steps)
        assert s.report.nfe == 18
        close(third, own, 1e-4)
    finally:
        pipe.transformer.disable_cache()


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_adapters_of_low_rank_stay_active(tiny, name):
    """A LoRA changes the network's layers, also below the modules that a guide perturbs."""
    peft = pytest.importorskip("peft")
    pipe, recipe = tiny(name)
    network = getattr(pipe, recipe.networks[0])
    plain = recipe.run(pipe, **recipe.scale(4.0))
    torch.manual_seed(0)
    network.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    try:
        own = recipe.run(pipe, **recipe.scale(4.0))
        assert (own - plain).abs().max() > 1e-3
        assert torch.equal(steered(pipe, recipe, "cfg(4)")[0], own)
        layers = {"sd": "mid_block", "sd3": "transformer_blocks.0"}[name]
        pag, _ = steered(pipe, recipe, f"cfg(4) + pag(2, layers='{layers}')")
        assert (pag - own).abs().max() > 1e-3
        network.disable_adapters()
        assert torch.equal(steered(pipe, recipe, "cfg(4)")[0], plain)
        without, _ = steered(pipe, recipe, f"cfg(4) + pag(2, layers='{layers}')")
    finally:
        network.delete_adapters("default")
    close(steered(pipe, recipe, f"cfg(4) + pag(2, layers='{layers}')")[0], without)


def faster(pipe, **options):
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_timestep_skip_range=(-1, 901),
        unconditional_batch_timestep_skip_range=(-1, 901),
        unconditional_batch_skip_range=3,
        attention_weight_callback=lambda _: 0.3,
        current_timestep_callback=lambda: pipe._current_timestep,
        **options,
    )


@pytest.mark.parametrize("name", ["wan", "flux"])
def test_faster_cache_keeps_a_state_for_each_branch(tiny, name):
    """The cache keeps one state for all calls; a branch must be as if it alone were called."""
    pipe, recipe = tiny(name)
    steps = {"num_inference_steps": 6}
    plain, _ = steered(pipe, recipe, "cfg(4)", **steps)
    pipe.transformer.enable_cache(faster(pipe, tensor_format="BCHW", is_guidance_distilled=True))
    try:
        alone = recipe.run(pipe, **recipe.scale(1.0), **steps)
        close(steered(pipe, recipe, "cfg(1.000001)", **steps)[0], alone, 1e-4)
        cached, _ = steered(pipe, recipe, "cfg(4)", **steps)
        assert (cached - plain).abs().max() > 1e-3
        third, s = steered(pipe, recipe, "cfg(4) + tsg(1.000001)", **steps)
        assert s.report.nfe == 18
        close(third, cached, 1e-4)
        late, _ = steered(pipe, recipe, "cfg(4) | interval(0.5, 1.0)", **steps)
        assert (late - cached).abs().max() > 1e-3  # a null whose state begins in mid-run
        assert torch.equal(steered(pipe, recipe, "cfg(4)", **steps)[0], cached)
    finally:
        pipe.transformer.disable_cache()


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # theirs
def test_faster_cache_of_row_pairs_takes_those_rows_alone(tiny):
    """It predicts the null rows of a pipeline's call from the conditional ones."""
    pipe, recipe = tiny("cogvideox")
    steps = {"num_inference_steps": 6}
    pipe.transformer.enable_cache(faster(pipe, tensor_format="BFCHW"))
    try:
        own = recipe.run(pipe, **recipe.scale(4.0), **steps)
        assert torch.equal(steered(pipe, recipe, "cfg(4)", **steps)[0], own)
        with pytest.raises(ValueError, match=r"FasterCache.* 'tsg.*FirstBlockCache"):
            steered(pipe, recipe, "cfg(4) + tsg(2)", **steps)
        with pytest.raises(ValueError, match=r"FasterCache.* 'cond'.*fixed_rows=True"):
            steered(pipe, recipe, "cfg(4) | interval(0, 0.5)", **steps)
        steered(pipe, recipe, "cfg(4) | interval(0, 0.5)", {"fixed_rows": True}, **steps)
    finally:
        pipe.transformer.disable_cache()
    pipe, recipe = tiny("wan")
    pipe.transformer.enable_cache(faster(pipe))
    try:
        with pytest.raises(ValueError, match="is_guidance_distilled=True"):
            steered(pipe, recipe, "cfg(4)", **steps)
    finally:
        pipe.transformer.disable_cache()


def test_hooks_of_accelerate_and_their_removal_inside_a_call(tiny, restored):
    """Offloading wraps `forward` and takes the wrapper away at the end of each call."""
    hooks = pytest.importorskip("accelerate.hooks")
    pipe, recipe = tiny("sd")
    restored(pipe, recipe)
    plain = recipe.run(pipe, **recipe.scale(4.0))
    seen = []

    class Counting(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(1)
            return args, kwargs

    def again(pipe, i, t, kwargs):
        hooks.remove_hook_from_module(pipe.unet)
        hooks.add_hook_to_module(pipe.unet, Counting())
        return kwargs

    hooks.add_hook_to_module(pipe.unet, Counting())
    try:
        with fl.steer(pipe, "cfg(4)"):
            ours = recipe.run(pipe, callback_on_step_end=again)
            ours = recipe.run(pipe, callback_on_step_end=again)
    finally:
        hooks.remove_hook_from_module(pipe.unet)
    assert torch.equal(ours, plain)
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["sd", "sd3", "wan"])
def test_pipelines_that_offload_whole_models(tiny, name):
    """Offloading as diffusers does it, with the CPU as the device that runs."""
    from fairlead.testing.pipelines import PIPELINES, tiny_pipeline

    pytest.importorskip("accelerate")
    pipe, recipe = tiny_pipeline(name), PIPELINES[name]
    own = recipe.run(pipe, **recipe.scale(4.0))
    guide = f"cfg(4) + pag(2, layers='{OFFLOADED[name]}')"
    perturbed, _ = steered(pipe, recipe, guide)
    pipe.enable_model_cpu_offload(device="cpu")
    hooks = [type(getattr(pipe, n)._hf_hook).__name__ for n in recipe.networks if getattr(pipe, n)]
    assert set(hooks) == {"CpuOffload"}
    for _ in range(2):  # they are taken off and put on again at the end of each call
        assert torch.equal(steered(pipe, recipe, "cfg(4)")[0], own)
    assert torch.equal(steered(pipe, recipe, guide)[0], perturbed)
    assert torch.equal(recipe.run(pipe, **recipe.scale(4.0)), own)


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_networks_whose_weights_come_layer_by_layer(tiny, name):
    """accelerate keeps weights on the meta device between the calls of each layer."""
    from fairlead.testing.pipelines import PIPELINES, tiny_pipeline

    accelerate = pytest.importorskip("accelerate")
    pipe, recipe = tiny_pipeline(name), PIPELINES[name]
    network = getattr(pipe, recipe.networks[0])
    energy = fl.DPS(lambda z: z.square().flatten(1).mean(1), 0.2)
    guides = ["cfg(4)", f"cfg(4) + pag(2, layers='{OFFLOADED[name]}')", fl.CFG(4.0) + energy]
    before = [steered(pipe, recipe, g)[0] for g in guides]
    accelerate.cpu_offload(network, execution_device=torch.device("cpu"))

    def away():
        return {p.device.type for p in network.parameters()} == {"meta"}

    assert away()
    for guide, latents in zip(guides, before, strict=True):
        assert torch.equal(steered(pipe, recipe, guide)[0], latents)
        assert away()


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_networks_are_compiled_once(tiny, how):
    """As many graphs as without us, also where a schedule turns guidance off."""
    pipe, recipe = tiny("sd")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    network = pipe.unet
    try:
        torch._dynamo.reset()
        if how == "wrapped":
            pipe.unet = torch.compile(network, backend=backend)
        else:
            network.compile(backend=backend)
        own = recipe.run(pipe, **recipe.scale(4.0))
        before = len(graphs)
        ours, _ = steered(pipe, recipe, "cfg(4)")
        assert torch.equal(ours, own)
        steered(pipe, recipe, "cfg(4) | interval(0, 0.5)", {"fixed_rows": True})
        steered(pipe, recipe, "cfg(4) | apg(eta=0)")
        assert len(graphs) == before
    finally:
        pipe.unet = network
        network._compiled_call_impl = None
        torch._dynamo.reset()


def test_noise_ends_of_the_prediction_meet_in_the_scheduler(tiny, tape):
    """CFG++ by hand: `alpha' D + sigma' eps_u` of DDIM."""
    pipe, recipe = tiny("sd")
    with tape(pipe, recipe.networks) as seen:
        steered(pipe, recipe, "cfgpp(0.6)")
    table = pipe.scheduler.alphas_cumprod.double()
    for output, (_, t, (x, *_), _), step in zip(seen.outputs, seen.steps, range(3), strict=True):
        u, c = output.double().chunk(2)
        after = int(t) - 1000 // 3
        a, b = table[int(t)], table[after] if after >= 0 else pipe.scheduler.final_alpha_cumprod
        eps = u + 0.6 * (c - u)
        d = (x - (1 - a).sqrt() * eps) / a.sqrt()
        expected = b.sqrt() * d + (1 - b).sqrt() * u
        later = seen.steps[step + 1][2][0] if step < 2 else None
        if later is not None:
            close(later.double(), expected, 1e-5)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "wan", "stable_audio", "z_image"])
def test_cfgpp_at_k_one_is_cfg_on_every_scheduler(tiny, name):
    """`k = 1` renoises with the guided prediction: CFG at `w = lam`, by the other way."""
    pipe, recipe = tiny(name)
    plain, _ = steered(pipe, recipe, "cfg(0.6)")
    both, _ = steered(pipe, recipe, "cfgpp(0.6, k=1)")
    close(both, plain)
    other, _ = steered(pipe, recipe, "cfgpp(0.6)")
    assert (other - plain).abs().max() > 1e-3


def test_the_report_says_what_happened(tiny):
    pipe, recipe = tiny("sd")
    with (
        pytest.warns(UserWarning, match=r"guidance_scale=3.0 has no effect"),
        fl.steer(pipe, "cfg(4) | interval(0, 0.5)") as s,
    ):
        recipe.run(pipe, guidance_scale=3.0)
    text, data = str(s.report), s.report.to_dict()
    assert "StableDiffusionPipeline under cfg(4.0) | interval(0.0, 0.5)" in text
    assert "without effect: guidance_scale" in text
    assert "rows null cond" in text
    assert data["inert"] == {"guidance_scale": 3.0}
    assert data["nfe"] == 5
    assert [step["branches"] for step in data["steps"]][2] == {"cond": "evaluated"}
    assert data["steps"][0]["norms"]["cfg(4.0)"] > 0


def test_embedded_guidance_stays_alive(tiny):
    """A distilled scale is an input of the network, not guidance of the pipeline."""
    pipe, recipe = tiny("flux_embedded")
    a, s = steered(pipe, recipe, "cfg(4)", guidance_scale=3.5)
    b, _ = steered(pipe, recipe, "cfg(4)", guidance_scale=1.0)
    assert (a - b).abs().max() > 1e-4
    assert s.report.inert == {}


def test_a_null_that_the_pipeline_was_not_asked_for(tiny):
    """Flux evaluates no null without a negative prompt: the empty one is given."""
    pipe, recipe = tiny("flux")
    ours, _ = steered(pipe, recipe, "cfg(4)", negative_prompt=None)
    own = recipe.run(pipe, negative_prompt="", **recipe.scale(4.0))
    assert torch.equal(ours, own)


def test_not_a_number_is_named(tiny):
    pipe, recipe = tiny("sd")

    def spoil(module, args, output):
        return (output[0] * float("nan"),)

    handle = pipe.unet.register_forward_hook(spoil)
    try:
        for guide in ("cfg(4)", "cfg(4) | apg(eta=0)"):
            with pytest.raises(FloatingPointError, match="step 0"), fl.steer(pipe, guide):
                recipe.run(pipe)
        steered(pipe, recipe, "cfg(4)", {"check": False})
    finally:
        handle.remove()


def test_missing_prompts_models_and_layers_are_named(tiny):
    pipe, recipe = tiny("sd")
    with pytest.raises(ValueError, match=r"'negative': pass fl.steer\(prompts="):
        steered(pipe, recipe, "cfg(4, against='negative')")
    with pytest.raises(ValueError, match=r"pass fl.steer\(models="):
        steered(pipe, recipe, "autoguidance(2)")
    with pytest.raises(ValueError, match=r"no .*layer.* matches 'midd'"):
        steered(pipe, recipe, "pag(3, layers='midd')")
    with pytest.raises(ValueError, match="2 texts were given for a branch"):
        steered(
            pipe,
            recipe,
            "cfg(4, against='negative')",
            {"prompts": {"negative": ["a", "b"]}},
        )


def test_a_distilled_model_has_no_null(tiny):
    """A consistency model takes its scale as an input, so it evaluates one branch."""
    from diffusers import LCMScheduler

    pipe, recipe = tiny("sd")
    old = pipe.scheduler
    pipe.scheduler = LCMScheduler.from_config(old.config)
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    embedding = pipe.unet.time_embedding
    embedding.cond_proj = nn.Linear(8, embedding.linear_1.in_features)
    try:
        with pytest.raises(ValueError, match="has no null; icg, tsg, pag"):
            steered(pipe, recipe, "cfg(4)")
        _, s = steered(pipe, recipe, "tsg(2)", guidance_scale=8.0)
        assert s.report.nfe == 6
        _, s = steered(
            pipe,
            recipe,
            "cfg(4, against='negative')",
            {"prompts": {"negative": "fog"}},
        )
        assert s.report.nfe == 6
    finally:
        pipe.scheduler = old
        pipe.unet.register_to_config(time_cond_proj_dim=None)
        embedding.cond_proj = None


class Strange:
    """No pipeline."""

    def __init__(self):
        self.components = {}


def test_what_is_not_supported_says_what_was_seen(tiny):
    with pytest.raises(ValueError, match="Strange is not supported: it has none of unet"):
        fl.steer(Strange(), "cfg(4)")
    pipe, recipe = tiny("sd")
    with pytest.raises(ValueError, match="has no network 'unit'; did you mean 'unet'"):
        fl.steer(pipe, "cfg(4)", network="unit")
    with pytest.raises(ValueError, match="layout must be 'rows' or 'calls'"):
        fl.steer(pipe, "cfg(4)", layout="columns a b")
    with pytest.raises(ValueError, match="batching must be one of"):
        fl.steer(pipe, "cfg(4)", batching="all")
    with pytest.raises(ValueError, match="asks for the energy 'classifier': pass energies="):
        fl.steer(pipe, "classifier_guidance('classifier')")
    turned, _ = steered(pipe, recipe, "cfg(4)", {"layout": "rows cond null"})
    right, _ = steered(pipe, recipe, "cfg(4)", {"layout": "rows null cond"})
    assert torch.equal(right, recipe.run(pipe, **recipe.scale(4.0)))
    assert torch.equal(turned, recipe.run(pipe, **recipe.scale(4.0))) is False
