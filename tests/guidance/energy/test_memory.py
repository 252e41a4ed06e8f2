"""Guides that differentiate keep no graph, and no more tensors, from step to step."""

import gc

import pytest
import torch

import fairlead as fl
from fairlead.energy import Classifier
from fairlead.guidance.algebra import REGISTRY
from fairlead.guidance.energy.term import GradientTerm
from fairlead.testing import tiny_denoiser

DIFFERENTIATE = sorted(
    k
    for k, v in REGISTRY.items()
    if issubclass(v, GradientTerm) and "continuous" in v.domains and k != "layout"
)


def judge():
    """Two classes, from a few weights that ask for gradients as a user's classifier may."""
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2)).eval(), 1)


def live(size):
    """How many tensors are as large as the batch, and how many of any size hold a graph."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
    return sum(t.numel() >= size for t in tensors), sum(t.grad_fn is not None for t in tensors)


@pytest.fixture(autouse=True)
def _since():
    """What was there before is out of the collector's sight, which makes it quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("sampler", ["ddim(eta=1.0)", "recurrence('ddim(eta=1.0)', times=2)"])
@pytest.mark.parametrize("name", DIFFERENTIATE)
def test_no_graph_and_no_tensor_outlives_a_step(name, sampler):
    denoiser, energy = tiny_denoiser(), judge()
    energy(torch.zeros(2, *denoiser.shape))
    seen = []
    fl.sample(
        denoiser,
        {"label": torch.arange(2)},
        guide=REGISTRY[name](energy),
        sampler=sampler,
        steps=8,
        record=False,
        callback=lambda step: seen.append(live(step.x.numel())),
    )
    assert [graphs for _, graphs in seen] == [0] * 8
    # solvers and guides fill their memory in the first steps; the last step leaves another set
    assert len({count for count, _ in seen[3:7]}) == 1, seen
