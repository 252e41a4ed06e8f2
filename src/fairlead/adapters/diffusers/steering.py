"""`fl.steer`: any guide on any pipeline of diffusers."""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

from torch import nn

from fairlead.adapters.diffusers import inputs, probe
from fairlead.adapters.diffusers.decoding import Decode, decoder
from fairlead.adapters.diffusers.energies import energies_of, require_steerable
from fairlead.adapters.diffusers.evaluator import Batching
from fairlead.adapters.diffusers.knobs import Knobs, like_prompt
from fairlead.adapters.diffusers.layouts import SINGLE, Layout
from fairlead.adapters.diffusers.patch import all_called, replaced_attribute
from fairlead.adapters.diffusers.report import SteeringReport
from fairlead.adapters.diffusers.session import Session, Setting
from fairlead.adapters.diffusers.step import both_ends, corrected, require_order, require_predictor
from fairlead.guidance.algebra import Guide
from fairlead.guidance.guided import branches
from fairlead.guidance.report import Report
from fairlead.guidance.spec import guide as parse
from fairlead.parameters import choose, nearest, whole
from fairlead.samplers.base import Sampler, get
from fairlead.samplers.pcg import PCG
from fairlead.sampling import require_differentiable

NETWORKS = ("unet", "transformer", "transformer_2", "dit", "denoiser")
"""Usual names of the components that predict."""


def steer(
    pipe: Any,
    guide: Guide | str,
    *,
    sampler: Sampler | str | None = None,
    prompts: Mapping[str, str | list[str]] | None = None,
    models: Mapping[str, nn.Module] | None = None,
    masks: Mapping[str, Any] | None = None,
    energies: Mapping[str, Any] | None = None,
    decode: Decode | Literal["vae"] | None = None,
    batching: Batching = "auto",
    fixed_rows: bool = False,
    max_batch: int | None = None,
    layout: str | Layout | None = None,
    network: str | None = None,
    seed: int = 0,
    check: bool = True,
    record: bool = True,
) -> "Steering":
    """Lets a guide decide what a diffusers pipeline does, inside a `with` block.

    The pipeline is called as always. What it computes from its branches stays in place and is made
    without effect: each branch that it asks its network for is answered with the guided prediction,
    and any of its formulas returns that unchanged. So its own guidance scale is inert.

    ``null`` is what the pipeline itself pushes away from: the call's negative prompt, or the empty
    one.

    Args:
        pipe: A pipeline.
        guide: A guide or its text.
        sampler: ``pcg(...)`` makes every step of the pipeline's scheduler a conditional one, and
            corrects it by Langevin steps under the guide; `None` leaves steps to the scheduler.
        prompts: Further prompts by the name of the state that the guide asks for, such as
            ``negative``: a text, or one for each prompt of the call.
        models: Further networks by name, called with the arguments of the pipeline's own.
        masks: Masks by name, for guides that act on a region: pictures, or numbers ``(H, W)`` or
            ``(B, H, W)`` in [0, 1] of any size.
        energies: Energies by name, for guides that ask for one by name (`fl.energy`, or functions
            of a clean estimate).
        decode: What energies of clean samples judge: the pipeline's clean latents as its network
            is given them (`None`), pixels in [-1, 1] that its autoencoder makes of them (``vae``),
            or what a differentiable function makes of them.
        batching: ``auto`` makes the pipeline's own calls, and joins further branches where the
            pipeline joins its own; ``batched`` makes one call of all branches; ``sequential`` one
            call a branch.
        fixed_rows: Whether the pipeline's own calls keep their number of rows also in steps that
            do not need all, so that a compiled network is not compiled anew.
        max_batch: Most rows in one call of the network: longer calls, the pipeline's own included,
            are split, which saves memory and may differ by rounding.
        layout: Which rows or calls are which branch, such as ``rows null cond``; it is found out
            where it is not given.
        network: Name of the component that predicts, where it is none of the usual.
        seed: Seed of what the guide draws.
        check: Whether a NaN or infinity raises.
        record: Whether the norm of each term is kept.

    Returns:
        A context manager that yields a `Steering`; ``.report`` is the log of the last call.

    Raises:
        ValueError: The pipeline is not supported, or an argument is unknown; in the pipeline's
            call: a branch that the guide asks for cannot be evaluated.
        RuntimeError: The pipeline is steered already; in the pipeline's call: the guide takes
            gradients, under ``torch.inference_mode``.

    Example:
        With a pipeline ``pipe``::

            with fl.steer(pipe, "cfg(5) + pag(3, layers='mid') | interval(0.1, 0.8)") as s:
                image = pipe("a lighthouse in a storm", num_inference_steps=30).images[0]
            print(s.report)
    """
    parsed = parse(guide)
    parsed.require("continuous")
    require_steerable("steer", parsed, moves=True)
    given_energies = energies_of(parsed, energies or {})
    corrector = _corrector(sampler)
    choose("steer", "batching", batching, ("auto", "batched", "sequential"))
    given = Layout.parse(layout) if isinstance(layout, str) else layout
    return Steering(
        pipe,
        parsed,
        prompts or {},
        models or {},
        masks or {},
        given,
        network,
        {
            "batching": batching,
            "fixed_rows": fixed_rows,
            "max_batch": whole("steer", "max_batch", max_batch),
            "seed": seed,
            "check": check,
            "record": record,
            "sampler": corrector,
            "energies": given_energies,
            "decode": decoder(pipe, decode),
        },
    )


def _corrector(sampler: Sampler | str | None) -> PCG | None:
    """The sampler that corrects a scheduler's steps.

    Raises:
        ValueError: It is one that takes the steps itself.
    """
    made = None if sampler is None else get(sampler)
    if made is None or isinstance(made, PCG):
        return made
    raise ValueError(
        f"steer: sampler must be pcg(...), which corrects the steps of a scheduler, or None, got "
        f"{made}; the other samplers are schedulers themselves: set pipe.scheduler, or use "
        "fl.sample"
    )


class Steering:
    """A pipeline under a guide; made by `steer`.

    Attributes:
        guide: The guide.
        report: The log of the last call.
    """

    def __init__(
        self,
        pipe: Any,
        guide: Guide,
        prompts: Mapping[str, str | list[str]],
        models: Mapping[str, nn.Module],
        masks: Mapping[str, Any],
        layout: Layout | None,
        network: str | None,
        options: dict[str, Any],
    ) -> None:
        self.pipe = pipe
        self.guide = guide
        self.prompts = prompts
        self.models = models
        self.masks = masks
        self.options = options
        self._given = layout
        self._names = _networks(pipe, network)
        self._class = type(pipe)
        self._call = self._class.__call__
        self._signature = inspect.signature(self._call)
        self._learned: dict[Any, tuple[Layout, probe.Reading, tuple[int, ...]]] = {}
        self._report = SteeringReport(str(guide), self._class.__name__)

    @property
    def report(self) -> SteeringReport:
        return self._report

    def __enter__(self) -> "Steering":
        if issubclass(type(self.pipe), _Steered):
            raise RuntimeError(
                f"steer: this {self._class.__name__} is being steered already; join the guides "
                "with + and |, or leave the outer block first"
            )
        self._class = type(self.pipe)
        self.pipe.__class__ = _subclass(self._class, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pipe.__class__ = self._class

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's call under the guide."""
        bound = self._signature.bind(self.pipe, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        extra = given.pop("kwargs", {}) if _takes_any(self._signature) else {}
        given |= extra
        networks = {n: getattr(self.pipe, n) for n in self._names}
        networks = {n: m for n, m in networks.items() if isinstance(m, nn.Module)}
        setting, arguments, inert = self._prepare(given, networks)
        report = Report(self.options["record"])
        require_differentiable("the pipeline", self.guide)
        require_order(self.guide, self.pipe.scheduler)
        if setting.sampler is not None:
            require_predictor(setting.sampler, self.pipe.scheduler, arguments)
        session = Session(setting, report)
        self._report = SteeringReport(
            str(self.guide), self._class.__name__, str(setting.layout), inert, session.read
        )
        with ExitStack() as stack:
            stack.callback(session.end)
            stack.enter_context(all_called(networks, session.handler))
            scheduler = self.pipe.scheduler
            if session.moving or not session.raw:
                step = corrected(session, both_ends(session, scheduler.step))
                stack.enter_context(replaced_attribute(scheduler, "step", step))
            result = self._call(self.pipe, **arguments)
        session.close()
        return result

    def _prepare(
        self, given: dict[str, Any], networks: Mapping[str, nn.Module]
    ) -> tuple[Setting, dict[str, Any], dict[str, Any]]:
        """What is known of the call before it is made, its arguments, and its inert knobs."""
        defaults = {
            n: p.default for n, p in self._signature.parameters.items() if p.default is not p.empty
        }
        knobs = Knobs.of(self.pipe, defaults)
        wanted = branches(self.guide)
        null = any(b.state == "null" or b.nulled for b in wanted)
        on, off = knobs.set(given, True), knobs.set(given, False)
        key = tuple(sorted(n for n, v in given.items() if v is not None))
        recordings: dict[str, probe.Recording] = {}
        if key not in self._learned:
            recordings = {k: self._record(networks, v) for k, v in (("on", on), ("off", off))}
            self._learned[key] = (
                self._given or probe.layout(self.pipe, recordings["on"], recordings["off"]),
                probe.reading(recordings["off"]),
                recordings["off"].latents,
            )
        layout, reading, shape = self._learned[key]
        live = len(layout.slots) == 1  # the scale of a distilled model is an input
        if not null:
            layout = SINGLE
        arguments = given if live else on if null else off
        recorded: dict[str, Mapping[str, Any]] = {}
        if layout.kind == "calls":
            calls = (recordings.get("on") or self._record(networks, on)).calls
            recorded = _ahead(layout, calls)
        states = {}
        if self.prompts:
            cond = (recordings.get("off") or self._record(networks, off)).calls[0]
            states = {
                name: self._state(networks, off, cond, name, text)
                for name, text in self.prompts.items()
            }
        inert = {} if live else knobs.inert(given)
        if inert:
            knobs.warn(given, str(self.guide))
        setting = Setting(
            self.pipe,
            self.guide,
            layout,
            reading,
            shape,
            recorded,
            states,
            self.models,
            self.masks,
            **self.options,
        )
        return setting, arguments, inert

    def _record(
        self, networks: Mapping[str, nn.Module], arguments: dict[str, Any]
    ) -> probe.Recording:
        return probe.record(self.pipe, networks, self._call, arguments)

    def _state(
        self,
        networks: Mapping[str, nn.Module],
        off: dict[str, Any],
        cond: inputs.Arguments,
        name: str,
        text: str | list[str],
    ) -> dict[str, Any]:
        """The inputs of the network that another prompt changes."""
        prompt = like_prompt(text, off)
        made = {n: None if _is_prompt(n) else v for n, v in off.items()}
        call = self._record(networks, {**made, "prompt": prompt}).calls[0]
        found = inputs.leaves(call)
        return {
            path: found[path]
            for path in inputs.leaves(cond)
            if path.partition(".")[0] not in inputs.STEPWISE
            and path in inputs.differing(cond, call, exact=True)
            and path.partition(".")[0] not in inputs.SAMPLE
        }


def _ahead(layout: Layout, calls: list[inputs.Arguments]) -> dict[str, Mapping[str, Any]]:
    """What tells the later calls of a step from the first."""
    first = calls[0]
    recorded: dict[str, Mapping[str, Any]] = {}
    for slot, call in zip(layout.slots, calls, strict=True):
        paths = inputs.differing(first, call, exact=True)
        moved = [p for p in paths if p in inputs.SAMPLE]
        if moved:
            raise ValueError(
                f"steer: the pipeline gives its {slot} branch another {moved[0]} than its "
                f"{layout.slots[0]} branch; only pipelines that batch such branches are supported"
            )
        found = inputs.leaves(call)
        recorded[slot] = {p: found[p] for p in paths}
    return recorded


def _networks(pipe: Any, network: str | None) -> tuple[str, ...]:
    if any(c.__name__ == "ModularPipeline" for c in type(pipe).__mro__):
        raise ValueError(
            f"steer: {type(pipe).__name__} is a modular pipeline, which takes a guide as its "
            "guider: pipe.update_components(guider=fl.as_guider(guide, pipe))"
        )
    components = [n for n, v in getattr(pipe, "components", {}).items() if isinstance(v, nn.Module)]
    if network is not None:
        if not isinstance(getattr(pipe, network, None), nn.Module):
            raise ValueError(
                f"steer: {type(pipe).__name__} has no network {network!r}; "
                f"{nearest(network, components)}"
            )
        return (network,)
    found = tuple(n for n in NETWORKS if isinstance(getattr(pipe, n, None), nn.Module))
    if not found or not hasattr(pipe, "scheduler"):
        raise ValueError(
            f"steer: {type(pipe).__name__} is not supported: it has "
            f"{'no scheduler' if found else 'none of ' + ', '.join(NETWORKS)}; its networks are "
            f"{', '.join(components) or 'none'}. Name the one that predicts: "
            "fl.steer(..., network='name')"
        )
    return found


def _is_prompt(name: str) -> bool:
    """Whether an argument is a prompt, or what a text encoder made of one."""
    return (name.startswith("prompt_") and name != "prompt_template") or "prompt_embeds" in name


def _takes_any(signature: inspect.Signature) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


class _Steered:
    """Marks the class of a pipeline while it is steered."""


def _subclass(cls: type, steering: Steering) -> type:
    """The pipeline's class with a steered call; what is saved names the class itself."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return steering.call(*args, **kwargs)

    __call__.__signature__ = inspect.signature(cls.__call__)  # type: ignore[attr-defined]
    made = type(cls.__name__, (_Steered, cls), {"__call__": __call__, "__module__": cls.__module__})
    made.__qualname__ = cls.__qualname__
    made.__doc__ = cls.__doc__
    return made
