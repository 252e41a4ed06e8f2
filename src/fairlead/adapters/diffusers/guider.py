"""The guider component that a modular pipeline takes."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import nn

from fairlead.adapters.diffusers import inputs
from fairlead.adapters.diffusers.energies import energies_of, require_steerable
from fairlead.adapters.diffusers.evaluator import Native
from fairlead.adapters.diffusers.layouts import Layout
from fairlead.adapters.diffusers.patch import called
from fairlead.adapters.diffusers.probe import Reading
from fairlead.adapters.diffusers.report import SteeringReport
from fairlead.adapters.diffusers.session import Session, Setting
from fairlead.guidance.algebra import Rule, Schedule
from fairlead.guidance.guided import branches
from fairlead.guidance.report import Report
from fairlead.guidance.spec import guide as parse
from fairlead.sampling import require_differentiable

LAYOUT = Layout("calls", ("cond", "null"))
"""What every modular pipeline does: one call a branch, the condition first."""

NEGATED = ("ZImageTransformer2DModel",)
"""Networks whose prediction modular pipelines negate before their scheduler sees it."""

STATELESS = SimpleNamespace(config={})
"""Stands in for a scheduler that was not given: it tells no noise level."""


class GuiderSession(Session):
    """A session that may begin in the middle of a run, where another network takes over.

    Args:
        setting: See `Session`.
        report: The log to write.
        step: The step it begins with.
    """

    def __init__(self, setting: Setting, report: Report, step: int) -> None:
        super().__init__(setting, report)
        self.first = step

    def _start(self, native: Native) -> None:
        super()._start(native)
        assert self.model is not None
        self.model.run.step = self.first - 1
        self.model.run.steps += self.first
        levels = self.model.run.levels  # the run counts its steps from the first network's
        self.model.run.levels = (*levels[:1] * self.first, *levels)


class FairleadGuider(BaseGuidance):  # type: ignore[misc]
    """A guide as the guider of a modular pipeline; made by `fl.as_guider`.

    The pipeline calls its network once a branch, the condition first. The first call of a step
    evaluates all that the guide wants and returns the guided prediction; the second returns it
    again. The configuration is the guide's text and the options; `save_pretrained` writes it, and
    `from_pretrained` reads it.

    Args:
        guide: Text of the guide.
        batching: See `fl.as_guider`.
        seed: Seed of what the guide draws.
        check: Whether a NaN or infinity raises.
        record: Whether the norm of each term is kept.
        max_batch: See `fl.as_guider`.

    Attributes:
        scheduler: The scheduler, or the pipeline that has it; for guides that need noise levels.
        models: Further networks by name.
        energies: Energies by name.
    """

    _input_predictions: ClassVar[list[str]] = ["pred_cond", "pred_uncond"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        guide: str = "none",
        batching: str = "auto",
        seed: int = 0,
        check: bool = True,
        record: bool = True,
        max_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.guide = parse(guide)
        self.options: dict[str, Any] = {
            "batching": batching,
            "seed": seed,
            "check": check,
            "record": record,
            "max_batch": max_batch,
        }
        self.scheduler: Any = None
        self.models: Mapping[str, nn.Module] = {}
        self.energies: Mapping[str, Any] = {}
        self._session: Session | None = None
        self._log = Report(record)
        self._fields: list[dict[str, Any]] = []
        self._recorded: dict[str, dict[str, Any]] = {}
        self._first: inputs.Arguments = {}
        self._open = ExitStack()

    @property
    def report(self) -> SteeringReport:
        """The log of the last run."""
        if self._session is not None:
            self._session.flush()
        log = self._log
        return SteeringReport(str(self.guide), "modular pipeline", str(LAYOUT), {}, lambda: log)

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared == 1  # type: ignore[no-any-return]

    @property
    def num_conditions(self) -> int:
        # also for guides without null: some blocks fail where no negative prompt is wanted
        return 2 if self._enabled else 1

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        before = self._step
        super().set_state(step, num_inference_steps, timestep)
        if self._session is None or before is None or step <= before:
            self._log = Report(self.options["record"])
            self._session = None

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        return self._batches(lambda i, name: self._prepare_batch(data, i, name), data)

    def prepare_inputs_from_block_state(
        self, data: Any, input_fields: Mapping[str, Any]
    ) -> list[Any]:
        return self._batches(
            lambda i, name: self._prepare_batch_from_block_state(input_fields, data, i, name),
            input_fields,
        )

    def _batches(self, batch: Callable[[int, str], Any], names: Mapping[str, Any]) -> list[Any]:
        made = [batch(i, self._input_predictions[i]) for i in range(self.num_conditions)]
        fields = [{n: getattr(b, n) for n in names if hasattr(b, n)} for b in made]
        if self._session is not None and self._fields and self._enabled:
            before, now = self._fields[1], fields[1]
            if any(now[n] is not before.get(n) for n in now):
                self._session.fast = None  # it knows the inputs of its first step alone
        self._fields = fields
        return made

    def prepare_models(self, denoiser: nn.Module) -> None:
        super().prepare_models(denoiser)
        self._open.close()  # what an exception in the last call may have left
        if self._enabled:
            self._open.enter_context(called(denoiser, lambda inner: self._handler(denoiser, inner)))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._open.close()

    def forward(self, pred_cond: Any, pred_uncond: Any = None) -> Any:
        return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _handler(self, network: nn.Module, inner: inputs.Inner) -> inputs.Inner:
        def guided(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = inputs.bind(network, args, kwargs)
                if self._count_prepared == 1:
                    self._first = bound
                    self._recorded["null"] = self._ahead(bound)
                    if self._session is None:
                        self._session = self._begin(network, bound)
                else:
                    self._compare(bound)
                assert self._session is not None
                made = self._session.handler("", network)(inner)(*args, **kwargs)
                if self._step == self._num_inference_steps - 1 and self._count_prepared == 2:
                    self._session.close()
                return made
            except BaseException:
                self._session = None
                raise
            finally:
                self._open.close()  # blocks do not clean up after an exception

        return guided

    def _begin(self, network: nn.Module, bound: inputs.Arguments) -> Session:
        guide, scheduler = self.guide, getattr(self.scheduler, "scheduler", self.scheduler)
        require_steerable("as_guider", guide)
        require_differentiable("the pipeline", guide)
        two_ends = [
            n
            for n in guide.nodes()
            if getattr(n, "claims_renoise", False) or getattr(n, "apart", False)
        ]
        if two_ends:
            raise ValueError(
                f"as_guider: {two_ends[0]} acts in the scheduler's step, which a guider does not "
                "reach; use fl.steer with a classic pipeline"
            )
        for branch in branches(guide):
            if branch.state not in LAYOUT.slots:
                raise ValueError(
                    f"as_guider: the guide asks for the branch {branch.name!r}, and a modular "
                    "pipeline prepares cond and null alone, where null is its negative prompt; "
                    "use fl.steer(prompts=...) with a classic pipeline"
                )
        if scheduler is None:
            for node in guide.nodes():
                if isinstance(node, (Rule, Schedule)) or not getattr(node, "affine", True):
                    raise ValueError(
                        f"as_guider: {node} needs the noise level, which the scheduler tells: give "
                        "fl.as_guider(guide, pipe), or set guider.scheduler = pipe"
                    )
        name = type(inputs.original(network)).__name__
        setting = Setting(
            SimpleNamespace(scheduler=STATELESS if scheduler is None else scheduler),
            guide,
            LAYOUT,
            Reading(sign=-1.0 if name in NEGATED else 1.0),
            _latents(network, bound),
            {"cond": {}, "null": self._recorded["null"]},
            {},
            self.models,
            energies=energies_of(guide, self.energies),
            **self.options,
        )
        self._recorded = dict(setting.recorded)  # type: ignore[arg-type]
        return GuiderSession(setting, self._log, self._step)

    def _ahead(self, bound: inputs.Arguments) -> dict[str, Any]:
        """What the null branch will be given where the condition's differs, by leaf."""
        cond, null = self._fields
        cond = {n: v for n, v in cond.items() if not inputs.same(v, null.get(n), exact=True)}
        made = self._recorded.setdefault("null", {})
        made.clear()
        for path, value in inputs.leaves(bound).items():
            name = path.rpartition(".")[2]
            if name not in cond or not _equal(value, cond[name]):
                name = next((n for n in cond if _equal(value, cond[n])), "")
            if name:
                made[path] = _like(null[name], value)
        return made

    def _compare(self, bound: inputs.Arguments) -> None:
        """Refuses a pipeline whose branches differ in what the guider was not told of."""
        if len(self._log.entries) > 1:
            return
        paths = inputs.differing(self._first, bound)
        told = self._recorded["null"]
        other = [p for p in paths if p not in told and p.partition(".")[0] not in inputs.STEPWISE]
        if other:
            raise ValueError(
                f"as_guider: the pipeline gives its branches different {other[0]}, and did not "
                f"hand that to the guider, which was given {', '.join(self._fields[0])}; this "
                "family is not supported"
            )


def _equal(given: Any, field: Any) -> bool:
    """Whether what a network is given is a field of the guider's, up to dtype."""
    if field is None or type(given) is not type(field):
        return False
    return inputs.same(given, _like(field, given), exact=True)


def _like(value: Any, given: Any) -> Any:
    """A value in the dtype of another."""
    if isinstance(value, torch.Tensor) and isinstance(given, torch.Tensor):
        return value.to(given.dtype)
    if isinstance(value, (list, tuple)) and isinstance(given, (list, tuple)):
        first = next((g for g in given if isinstance(g, torch.Tensor)), None)
        return type(given)(value if first is None else (_like(v, first) for v in value))
    return value


def _latents(network: nn.Module, bound: inputs.Arguments) -> tuple[int, ...]:
    """Shape of a sample's latents, without what else its network is given beside them."""
    config = getattr(inputs.original(network), "config", {})
    taken, kept = config.get("in_channels"), config.get("out_channels")
    name = inputs.name_of(bound, inputs.SAMPLE)
    if name is None or not isinstance(bound[name], torch.Tensor):
        return ()
    shape = list(bound[name].shape[1:])
    if taken and kept and kept < taken and len(shape) > 2 and shape[0] == taken:
        shape[0] = kept
    return tuple(shape)
