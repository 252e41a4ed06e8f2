"""What a pipeline does with its network, learned from calls in which the network is not run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.adapters.diffusers import inputs
from fairlead.adapters.diffusers.knobs import ON
from fairlead.adapters.diffusers.layouts import SINGLE, Form, Layout, override
from fairlead.adapters.diffusers.patch import Handler, all_called, replaced_attribute

MOST_CALLS = 8
"""Calls of the network in one step after which a recording ends in any case."""


class Stop(BaseException):
    """Ends a recorded call; no pipeline catches it."""


class Output(tuple[Any, ...]):
    """A stand-in for what a network returns, in either of its forms."""

    @property
    def sample(self) -> Any:
        return self[0]


@dataclass
class Recording:
    """The first step of a call in which the network was not run.

    Attributes:
        calls: Arguments of each call of the network.
        outputs: What was returned in its place, as a tensor.
        received: What the pipeline then gave to its scheduler, or `None`.
        latents: Shape of the latents that it gave along, without the batch.
        network: The network that was called.
    """

    calls: list[inputs.Arguments] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    received: Tensor | None = None
    latents: tuple[int, ...] = ()
    network: nn.Module | None = None


@dataclass(frozen=True)
class Reading:
    """How the pipeline reads a prediction.

    Attributes:
        sign: -1 where the pipeline negates it, 0 where it was not recognised.
        channels: Number of its channels that the scheduler is given; the rest are a variance.
        wide: Whether the pipeline combines in float32 whatever the network's dtype.
    """

    sign: float = 1.0
    channels: int | None = None
    wide: bool = False


def record(
    pipe: Any,
    networks: Mapping[str, nn.Module],
    call: Callable[..., Any],
    arguments: dict[str, Any],
) -> Recording:
    """Runs a pipeline up to its first scheduler step, without its network.

    Random states, the generators among the arguments and the progress bar are left as they were.

    Raises:
        ValueError: The pipeline ended before it called its network.
    """
    made = Recording()
    draws = torch.Generator().manual_seed(0)

    def handler(_: str, network: nn.Module) -> Handler:
        def stub(*args: Any, **kwargs: Any) -> Output:
            bound = inputs.bind(network, args, kwargs)
            made.calls.append(bound)
            made.network = network
            if len(made.calls) > MOST_CALLS:
                raise Stop
            value = _stand_in(network, bound, draws)
            made.outputs.append(inputs.stacked(value))
            return Output((value,))

        return lambda inner: stub

    @wraps(pipe.scheduler.step)  # pipelines look at its signature to see what it takes
    def step(model_output: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(model_output, Tensor):
            made.received = model_output
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 1]
        if tensors:
            made.latents = tuple(tensors[0].shape[1:])
        raise Stop

    quiet = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    with (
        untouched(arguments),
        replaced_attribute(pipe, "_progress_bar_config", quiet),
        replaced_attribute(pipe.scheduler, "step", step),
        all_called(networks, handler),
    ):
        try:
            # some write what they make of prompts into the lists that they are given
            call(pipe, **{n: list(v) if type(v) is list else v for n, v in arguments.items()})
        except Stop:
            pass
        except Exception:
            # what a pipeline makes of a stand-in says nothing once the network was called
            if not made.calls:
                raise
    if not made.calls:
        raise ValueError(
            f"steer: {type(pipe).__name__} never called {' or '.join(networks)}; name the network "
            "that predicts: fl.steer(..., network='name')"
        )
    return made


def _stand_in(network: nn.Module, bound: inputs.Arguments, draws: torch.Generator) -> Any:
    """Random rows of the shape that the network would return."""
    rows = inputs.sample(bound)
    sample = inputs.stacked(rows)
    shape = list(sample.shape)
    config = getattr(inputs.original(network), "config", {})
    taken, given = config.get("in_channels"), config.get("out_channels")
    # of sequences of patches the configuration counts otherwise
    if taken and given and taken != given and len(shape) > 3 and taken in shape[1:]:
        shape[shape.index(taken, 1)] = given
    value = torch.randn(shape, generator=draws).to(sample)
    return inputs.like(value, rows)


@contextmanager
def untouched(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Restores global random states and those of generators among the arguments."""
    generators = []
    for value in arguments.values():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, torch.Generator):
                generators.append((one, one.get_state()))
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for generator, state in generators:
                generator.set_state(state)


def layout(pipe: Any, on: Recording, off: Recording) -> Layout:
    """Which rows or calls are which branch, from a call with guidance and one without.

    Raises:
        ValueError: It cannot be told; says what was seen.
    """
    batch, rows = inputs.count(off.calls[0]), inputs.count(on.calls[0])
    calls = len(on.calls)
    if calls == 1 and rows == batch:
        return SINGLE
    if calls == 1 and rows % batch == 0:
        kind, slots = "rows", rows // batch
        spans = [slice(i * batch, (i + 1) * batch) for i in range(slots)]
        parts = [inputs.take(on.calls[0], rows, span) for span in spans]
    elif calls <= MOST_CALLS and all(inputs.count(c) == batch for c in on.calls):
        kind, slots, parts = "calls", calls, on.calls
    else:
        raise _unknown(pipe, on, batch)
    names = override(pipe, slots)
    if names is None:
        if slots != 2:
            raise _unknown(pipe, on, batch)
        near = [len(inputs.differing(off.calls[0], part)) for part in parts]
        # equal prompts: the usual order
        first = near[0] < near[1] if near[0] != near[1] else kind == "calls"
        names = ("cond", "null") if first else ("null", "cond")
    return Layout(kind, names, _form(on, names, kind, batch))  # type: ignore[arg-type]


def _unknown(pipe: Any, on: Recording, batch: int) -> ValueError:
    seen = ", ".join(f"{inputs.count(c)} rows" for c in on.calls)
    return ValueError(
        f"steer: {type(pipe).__name__} called its network {len(on.calls)} time(s) in a step, with "
        f"{seen}, for a batch of {batch}; say which branch is which: "
        "fl.steer(..., layout='rows null cond')"
    )


def _form(on: Recording, names: tuple[str, ...], kind: str, batch: int) -> Form:
    """Where the pipeline's own formula starts, from what it made of random branches."""
    if on.received is None or len(names) != 2:
        return "null"
    values = list(torch.split(on.outputs[0], batch)) if kind == "rows" else on.outputs
    by_name = dict(zip(names, values, strict=True))
    c, u = (_matched(by_name[n], on.received) for n in ("cond", "null"))
    if c is None or u is None:
        return "null"
    made, got = c + ON * (c - u), on.received.float().flatten()
    found = any(torch.allclose(s * made, got, rtol=1e-2, atol=1e-2) for s in (1, -1))
    return "cond" if found else "null"


def reading(off: Recording) -> Reading:
    """What became of the conditional prediction on its way to the scheduler."""
    received, sent = off.received, off.outputs[0]
    if received is None:
        return Reading(sign=0.0)
    wide = received.dtype == torch.float32 and sent.dtype in (torch.float16, torch.bfloat16)
    channels = _matching(received, sent)
    value = _matched(sent, received)
    if value is None:
        return Reading(sign=0.0, wide=wide)
    got = received.float().flatten()
    for sign in (1.0, -1.0):
        if torch.allclose(sign * value, got, rtol=1e-2, atol=1e-2):
            return Reading(sign, channels, wide)
    return Reading(sign=0.0, channels=channels, wide=wide)


def _matching(received: Tensor, sent: Tensor) -> int | None:
    """The channels that were kept, where some were dropped."""
    if sent.ndim == received.ndim and sent.shape[1] > received.shape[1]:
        return received.shape[1]
    return None


def _matched(sent: Tensor, received: Tensor) -> Tensor | None:
    """The part of an output that reaches the scheduler, flat; `None` if sizes differ."""
    channels = _matching(received, sent)
    kept = sent if channels is None else sent[:, :channels]
    return kept.float().flatten() if kept.numel() == received.numel() else None
