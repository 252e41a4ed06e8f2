"""What stands in for diffusers' guiders: the rows of the table in `docs/pipelines.rst`."""

import logging
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers import guiders
from diffusers.guiders.guider_utils import GuiderOutput

import fairlead as fl
from fairlead.guidance.algebra import REGISTRY
from fairlead.testing.pipelines import MODULAR, PIPELINES, tiny_modular, tiny_pipeline

PAGE = (Path(__file__).parents[2] / "docs/pipelines.rst").read_text()
FLOW = "space='flow_prediction'"  # diffusers works on what the network returns, here a velocity

shared = lru_cache(tiny_modular)


@pytest.fixture(autouse=True)
def quiet():
    """diffusers says at every guider that guiders are experimental."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(name, guider):
    """Latents under a guider, whose prediction is not rescaled to the conditional one."""
    forward = guider.forward

    def alone(*args, **kwargs):
        made = forward(*args, **kwargs)
        return GuiderOutput(pred=made.pred, pred_cond=made.pred, pred_uncond=None)

    guider.forward = alone
    shared(name).update_components(guider=guider)
    return MODULAR[name].run(shared(name))


APG = {"eta": 0.0, "adaptive_projected_guidance_rescale": 2.0}
ROWS = [
    ("ClassifierFreeGuidance", {"guidance_scale": 4.0}, "cfg(4)"),
    ("ClassifierFreeGuidance", {"guidance_scale": 3.0, "use_original_formulation": True}, "cfg(4)"),
    (
        "ClassifierFreeGuidance",
        {"guidance_scale": 4.0, "guidance_rescale": 0.7},
        f"cfg(4) | rescale(0.7, {FLOW})",
    ),
    ("ClassifierFreeGuidance", {"guidance_scale": 4.0, "start": 0.34}, "cfg(4) | interval(0.3, 1)"),
    (
        "AdaptiveProjectedGuidance",
        {"guidance_scale": 4.0, **APG},
        f"cfg(4) | apg(eta=0, r=2, form='from_null', {FLOW})",
    ),
    (
        "AdaptiveProjectedGuidance",
        {
            **APG,
            "guidance_scale": 3.0,
            "adaptive_projected_guidance_momentum": -0.5,
            "use_original_formulation": True,
        },
        f"cfg(4) | apg(eta=0, r=2, beta=-0.5, {FLOW})",
    ),
    (
        "ClassifierFreeZeroStarGuidance",
        {"guidance_scale": 4.0, "zero_init_steps": 1},
        "cfg(4) | zero_star(zero_steps=1)",
    ),
    (
        "TangentialClassifierFreeGuidance",
        {"guidance_scale": 4.0},
        f"cfg(4) | tangential({FLOW})",
    ),
]


@pytest.mark.parametrize(("theirs", "options", "guide"), ROWS, ids=[f"{r[0]}-{r[2]}" for r in ROWS])
def test_a_guider_of_diffusers_is_a_guide(theirs, options, guide):
    want = run("sd3", getattr(guiders, theirs)(**options))
    made = run("sd3", fl.as_guider(guide, shared("sd3")))
    # float32, and for rules a way to clean estimates and back
    torch.testing.assert_close(made, want, rtol=0, atol=2e-6 * float(want.abs().max()))
    assert theirs in PAGE


def test_magnitude_on_packed_latents():
    """Theirs fails on latents of four dimensions."""
    want = run("qwen_image", guiders.MagnitudeAwareGuidance(4.0, alpha=8.0))
    made = run("qwen_image", fl.as_guider("cfg(4) | magnitude(8)", shared("qwen_image")))
    torch.testing.assert_close(made, want, rtol=0, atol=2e-6 * float(want.abs().max()))
    plain = run("qwen_image", fl.as_guider("cfg(4)"))
    assert float((made - plain).abs().max()) > 1e-4


def test_guides_of_the_page_are_guides():
    quoted = [re.sub(r"\bw\b", "2", t) for t in re.findall(r"``([^`]+)``", PAGE)]
    names = tuple(f"{name}(" for name in REGISTRY)
    texts = [re.sub(r"\b(s|phi|r|beta|lam|n|a|high|low|t)\b(?!=)", "0.5", t) for t in quoted]
    found = [t for t in texts if t.startswith(names)]
    assert len(found) > 15
    for text in found:
        fl.guide(text.replace("zero_steps=0.5", "zero_steps=1"))


def test_every_tiny_pipeline_stands_in_the_table():
    for name in PIPELINES:
        assert type(tiny_pipeline(name)).__name__ in PAGE, name
