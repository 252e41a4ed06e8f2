"""Guides that weigh space or frequency: images and videos of any size, sample by sample."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import fairlead as fl
from fairlead.guidance.algebra import REGISTRY
from fairlead.testing.checks import draw, networks
from fairlead.testing.subject import Subject, example

SIZES = [(2, 3, 7, 5), (3, 2, 12, 10), (2, 3, 5, 7, 6), (2, 2, 3, 9, 4), (2, 3, 11)]
GUIDES = [
    "cfg(3) | frequency([1.5, 0.5])",
    "cfg(3) | frequency([1.5, 1.0, 0.5], eta=[1.0, 0.0, 0.5])",
    "cfg(3) | bands(2.5)",
    "cfg(3) | bands(2.5, ratio=0.3)",
    "cfg(3) | region('m')",
    "cfg(3) | region('m', of=['m', 'n']) | apg(r=1)",
    "cfg(3) | part(1, -1, dim=-1)",
    "cfg(3) | response(0.7)",
    "cfg(3) | match_statistics(0.5)",
    "cfg(3) | renorm(dim=1)",
    "cfg(3) | rescale(0.7) | threshold(0.9)",
    "cfg(5) + magic_fusion(4, model='weak')",
    "cfg(4) + face_diffuser(4, -0.5, 1.0, model='weak', state='negative')",
    "cfg(4) + safe(4, against='negative')",
    "cfg(4) + perp_neg(2)",
]


def values(size):
    """Random predictions of every branch, by name."""
    generator = torch.Generator().manual_seed(0)
    names = ("cond", "null", "negative", "weak", "weak null", "weak negative")
    return {k: torch.randn(size, generator=generator, dtype=torch.float64) for k in names}


def masks(size):
    """A soft mask that differs between samples, and one of columns."""
    generator = torch.Generator().manual_seed(1)
    own = torch.rand(size[0], 1, *size[2:], generator=generator, dtype=torch.float64)
    return {"m": own, "n": (torch.arange(size[-1]) % 2).reshape(*[1] * (len(size) - 2), -1)}


def combined(guide, size, rows):
    """The prediction for some samples of the batch, alone."""
    v, m = values(size), masks(size)
    m["m"] = m["m"][rows]
    shown = {k: x[rows] for k, x in v.items()}
    x = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[rows]
    run = fl.Run(0, range(size[0])[rows], 10)
    run.advance()
    place = {"x": x, "t": 0.5, "schedule": fl.schedules.VP()}
    known = _names(guide, shown)
    return fl.combine(guide, known, masks=m, run=run, **place)


def _names(guide, shown):
    """The branches by the names that the guide has for them."""
    found = {}
    for node in fl.guide(guide).nodes():
        for _, *pair in getattr(node, "differences", ()):
            for b in (*pair, *getattr(node, "looks", ())):
                model = "weak " if b.model else ""
                state = b.state if b.state != "cond" else ""
                found[b.name] = shown[f"{model}{state}".strip() or "cond"]
        for b in getattr(node, "needs", ()):
            found[b.name] = shown[b.state]
    return {"cond": shown["cond"], **found}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("guide", GUIDES)
def test_a_batch_is_its_samples(guide, size):
    whole = combined(guide, size, slice(None))
    assert whole.shape == size
    assert bool(whole.isfinite().all())
    assert not torch.equal(whole, values(size)["cond"])
    for i in range(size[0]):
        alone = combined(guide, size, slice(i, i + 1))
        assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)


LAYERED = [
    name for name, cls in REGISTRY.items() if "layers" in getattr(cls, "__dataclass_fields__", ())
]


@pytest.mark.parametrize("name", LAYERED)
def test_layers_that_match_nothing_are_named_before_the_first_step(name):
    subject = Subject.of(replace(example(REGISTRY[name]), layers="none.such"))
    d = subject.tiny()
    with pytest.raises(ValueError, match=r"none\.such.*network has: \w+"):
        draw(subject.guide, d, n=1)
    assert not any(n.calls for n in networks(d))


@pytest.mark.parametrize("other", ["cfgpp(0.6)", "cfgpp(0.3) | interval(0, 0.5)"])
def test_two_claims_on_the_renoise_end_are_refused_at_once(other):
    for make in (
        lambda: fl.guide("cfgpp(0.5)") + fl.guide(other),
        lambda: fl.guide(f"(cfgpp(0.5) | apg(r=1)) + ({other})"),
        lambda: fl.guide(f"cfg(2) + cfgpp(0.5) + ({other}) | rescale(0.7)"),
    ):
        with pytest.raises(ValueError, match="both claim the renoise end of the prediction"):
            make()


@pytest.mark.parametrize("policy", ["cache", "rcfg"])
def test_a_policy_for_the_base_is_refused_at_once(policy):
    with pytest.raises(ValueError, match=rf"{policy}: only names the base branch 'cond', which is"):
        fl.guide(f"cfg(3) | {policy}(only=['cond'])")
