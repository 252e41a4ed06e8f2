"""Tiny pipelines, built once, and a recorder of what passes between them and their network."""

from functools import cache

import pytest
import torch

pytest.importorskip("diffusers")


@cache
def built(name):
    from fairlead.testing.pipelines import tiny_pipeline

    return tiny_pipeline(name)


@pytest.fixture
def tiny():
    """`tiny(name)` is the pipeline and its recipe; pipelines are shared, so leave them as found."""
    from fairlead.testing.pipelines import PIPELINES

    return lambda name: (built(name), PIPELINES[name])


class Tape:
    """What a network returned and what the scheduler was given, call by call."""

    def __init__(self, pipe, networks):
        self.outputs, self.steps = [], []
        self.pipe = pipe
        self.modules = [getattr(pipe, n) for n in networks if getattr(pipe, n) is not None]

    def __enter__(self):
        self.handles = [m.register_forward_hook(self._network) for m in self.modules]
        self.own = type(self.pipe.scheduler).step
        tape, own = self, self.own

        def step(scheduler, model_output, timestep, *args, **kwargs):
            out = own(scheduler, model_output, timestep, *args, **kwargs)
            tape.steps.append((model_output, timestep, args, out))
            return out

        step.__wrapped__ = own
        type(self.pipe.scheduler).step = step
        return self

    def _network(self, module, args, output):
        value = output[0]
        self.outputs.append(torch.stack(value) if isinstance(value, list) else value)

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
        type(self.pipe.scheduler).step = self.own


@pytest.fixture
def tape():
    return Tape
