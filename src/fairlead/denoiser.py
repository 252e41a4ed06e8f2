"""The denoiser: a network, its schedule and its prediction type as one function to `x0`."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fairlead import nulls
from fairlead.attention import AttentionLayer, Kind, find_attention
from fairlead.condition import Condition
from fairlead.layers import match_layers
from fairlead.parameters import choose, nearest
from fairlead.prediction import PREDICTIONS, PredictionType, edm_input, to_x0
from fairlead.schedules import Level, NoiseSchedule

Null = Any
"""A `fairlead.nulls.Null`, a value for one sample, or a callable from batch size to a tensor."""


class Denoiser:
    """Predicts clean samples: `denoiser(x, t, condition) -> x0`.

    The network is called as `network(x, network_time, **condition)` in its own dtype; the
    conversion to `x0` and everything after it is in float32, or float64 if `x` is.

    Args:
        network: Module or callable.
        schedule: Noise schedule it was trained under.
        prediction: What it predicts: `epsilon`, `sample`, `v_prediction`, `flow_prediction`
            or `edm` (preconditioned input, time `log(sigma/alpha)/4`, raw output).
        null: What null means for each condition: a null of `fairlead.nulls`, a value for one
            sample, or a callable from the batch size to a batch. A condition without entry has
            no null.
        shape: Shape of one sample, where `fl.sample(n=...)` should know it.
        sigma_data: Standard deviation of the data, for `edm`.
        trained: Condition states seen in training: `cond`, `null`, and for states in between
            the names of the conditions that are not null, joined by `+` (`image+text`); a guide
            that asks for another warns once. `None`: not known.
        time_embedding: Name of the module that embeds time, for guides that perturb it.
        embeddings: Name of the module that embeds a condition, by condition, for guides that
            act behind it; the network must then take the embedding in place of the index.
        choices: Number of values of each index condition, for guides that draw one.
        models: Further denoisers by name, such as a `weak` checkpoint.
        autocast: Dtype of autocast around the network, or `None`.
        log_density: Log density of noisy samples up to a constant that may depend on the time
            but not on the condition, `(B,)`; called like the network. For samplers that accept
            or reject.
        grid: Height and width of a sample (or frames, height, width), where its shape does not
            show them, for guides that need the grid of the tokens.
        trunk: Modules by name, patterns as for attention layers, whose output does not depend on
            the condition: they run once for branches that are predicted together and differ in
            the condition alone, as CFG's do. Exact, if it is true; it saves nothing where
            branches have calls of their own, or a perturbation stands in the guide.

    Raises:
        ValueError: Unknown prediction type; a pattern of the trunk names no module.

    Example:
        >>> import fairlead as fl
        >>> net = lambda x, t, label: torch.zeros_like(x)
        >>> d = fl.Denoiser(net, schedule=fl.schedules.EDM(), prediction="edm", null={"label": 10})
        >>> d(torch.ones(2, 3), 1.0, {"label": torch.tensor([1, 2])}).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: NoiseSchedule,
        prediction: PredictionType = "epsilon",
        null: Mapping[str, Null] | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        sigma_data: float = 0.5,
        trained: Iterable[str] | None = None,
        time_embedding: str | None = None,
        embeddings: Mapping[str, str] | None = None,
        choices: Mapping[str, int] | None = None,
        models: Mapping[str, "Denoiser"] | None = None,
        autocast: torch.dtype | None = None,
        log_density: Callable[..., Tensor] | None = None,
        grid: tuple[int, ...] | None = None,
        trunk: str | tuple[str, ...] = (),
    ) -> None:
        choose("Denoiser", "prediction", prediction, PREDICTIONS)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.null = dict(null or {})
        self.shape = shape
        self.sigma_data = sigma_data
        self.trained = frozenset(map(_sorted_state, trained)) if trained is not None else None
        self.time_embedding = time_embedding
        self.embeddings = dict(embeddings or {})
        self.choices = dict(choices or {})
        self.models: Mapping[str, Denoiser] = models or {}
        self.autocast = autocast
        self._log_density = log_density
        self.grid = grid
        self.trunk = _outermost(network, trunk)
        first = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        self._times: dict[Any, Tensor] = {}
        self.device = first.device if first is not None else None
        self.dtype = first.dtype if first is not None else None

    def __call__(
        self, x: Tensor, t: float | Tensor | Level, condition: Mapping[str, Any] | None = None
    ) -> Tensor:
        """The clean estimate.

        Args:
            x: `(B, ...)`.
            t: Time in the schedule's units: a number or `(B,)`; or a `Level`.
            condition: By name.

        Returns:
            `(B, ...)` in float32 (float64 if `x` is).
        """
        given = condition if isinstance(condition, Condition) else Condition(condition)
        level = t if isinstance(t, Level) else self.level(t, x)
        return self.predict(x, level, given.expand(len(x)))

    def level(self, t: float | Tensor, x: Tensor) -> Level:
        """Signal and noise at `t`, as numbers, or as tensors that broadcast against `x`."""
        return level_of(self.schedule, t, x)

    def predict(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The clean estimate at a level; the condition has the batch of `x`."""
        # the comparisons of dtypes below cost less than conversions that do nothing
        if x.dtype not in (torch.float32, torch.float64):
            x = x.float()
        inputs, time = x, self._network_time(level, x)
        if self.prediction == "edm":
            inputs = edm_input(x, level.alpha, level.sigma, self.sigma_data)
        if self.dtype is not None and inputs.dtype != self.dtype:
            inputs = inputs.to(self.dtype)
        if self.autocast:
            with torch.autocast(x.device.type, self.autocast):
                output = self.network(inputs, time, **condition.tensors)
        else:
            output = self.network(inputs, time, **condition.tensors)
        if output.dtype != x.dtype:
            output = output.to(x.dtype)
        return to_x0(output, x, level.alpha, level.sigma, self.prediction, self.sigma_data)

    def log_density(self, x: Tensor, level: Level, condition: Condition) -> Tensor:
        """The log density of noisy samples up to a constant, `(B, ...)` to `(B,)`.

        Raises:
            ValueError: The model knows none.
        """
        if self._log_density is None:
            raise ValueError(
                "this model knows no density: give Denoiser(log_density=...), or use what needs "
                "none, such as mcmc('ula')"
            )
        return self._log_density(x, self._network_time(level, x), **condition.tensors)

    def _network_time(self, level: Level, x: Tensor) -> Tensor:
        dtype = self.dtype or x.dtype
        if isinstance(level.t, Tensor):  # times that differ between samples
            t = level.t.to(x.device)
            edm = self.prediction == "edm"
            return (-self.schedule.log_snr(t) / 8 if edm else self.schedule.network_time(t)).to(
                dtype
            )
        key = (level.t, x.shape[0], dtype, x.device)
        if key not in self._times:
            if len(self._times) > 4096:  # many runs on grids that never meet again
                self._times.clear()
            self._times[key] = torch.full(
                (x.shape[0],), self._time(level), dtype=dtype, device=x.device
            )
        return self._times[key]

    def _time(self, level: Level) -> float:
        if self.prediction == "edm":
            return -level.log_snr / 8  # log(sigma / alpha) / 4
        if level.network_time is None:
            return float(self.schedule.network_time(torch.tensor(level.t)))
        return level.network_time

    def check(self, condition: Condition) -> None:
        """Refuses a condition that the network cannot take, before it is called.

        Raises:
            ValueError: A name is missing or unknown, an index is no whole number, or it is
                outside the model's choices and is not null.
        """
        required, accepted = self._names()
        unknown = [name for name in condition if accepted is not None and name not in accepted]
        if unknown:
            hint = nearest(unknown[0], accepted or ())
            raise ValueError(f"condition: the model takes no {unknown[0]!r}; {hint}")
        for name in required:
            if name not in condition:
                hint = f", or its null, {self.null[name]!r}" if name in self.null else ""
                raise ValueError(
                    f"condition: the model is conditioned on {name!r}, which is missing: give "
                    f"condition={{{name!r}: ...}}{hint}"
                )
        for name, value in condition.items():
            if name not in self.choices or (value.is_floating_point() and value.ndim > 1):
                continue
            if value.is_floating_point() or value.is_complex():
                raise ValueError(f"condition: {name} must be whole numbers, got {value.dtype}")
            top, null = self.choices[name], nulls.of(self.null.get(name)).value
            bad = (value < 0) | (value >= top)
            if isinstance(null, int):
                bad &= value != null
            if bool(bad.any()):
                raise ValueError(
                    f"condition: {name} must be in [0, {top - 1}], got {value[bad][0].item()}"
                )

    def _names(self) -> tuple[list[str], list[str] | None]:
        """Names of the conditions that the network needs, and of all that it takes if known."""
        if type(self).predict is not Denoiser.predict:
            return [], None
        call = self.network.forward if isinstance(self.network, nn.Module) else self.network
        try:
            parameters = list(inspect.signature(call).parameters.values())
        except (TypeError, ValueError):
            return [], None
        if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
            return [], None
        named = parameters[2:]
        return [p.name for p in named if p.default is p.empty], [p.name for p in named]

    @property
    def companions(self) -> frozenset[str]:
        """Conditions that say something of another one, and change with its null."""
        return frozenset(name for null in self.null.values() for name in nulls.of(null).sets)

    def null_condition(
        self,
        condition: Condition,
        names: Iterable[str] | None = None,
        draw: nulls.Draw | None = None,
    ) -> Condition:
        """The condition with all names, or the given ones, replaced by null.

        Args:
            condition: What is asked for.
            names: Names of the conditions that become null; default: all.
            draw: Noise for nulls that are noise, fixed by sample and key. Default: by the sample's
                place in the batch.

        Raises:
            ValueError: A name has no null, or its null does not fit; lists those that have one.
        """
        if names is None:
            names = [name for name in condition if name not in self.companions]
        replaced: dict[str, Tensor] = {}
        for name in names:
            if name not in condition:
                raise ValueError(f"null: no condition {name!r}; {nearest(name, condition)}")
            if name not in self.null:
                raise ValueError(
                    f"null: this model has no null for {name!r}; give one as "
                    f"Denoiser(null={{{name!r}: ...}}), or use a guide that needs none "
                    "(icg, tsg, pag, autoguidance)"
                )
            null = nulls.of(self.null[name])
            missing = [k for k in null.sets if k not in condition]
            if missing:
                raise ValueError(
                    f"null: the null of {name!r} sets {missing[0]!r}, which is no condition here; "
                    f"{nearest(missing[0], condition)}"
                )
            replaced |= null(name, condition, draw or nulls.by_place)
        return condition.replace(**replaced)

    def state(self, nulled: Iterable[str], condition: Condition) -> str:
        """How `trained` calls the state in which some conditions are null."""
        off = set(nulled)
        may = [name for name in condition if name in self.null and name not in self.companions]
        on = sorted(name for name in may if name not in off)
        if not off.intersection(may):
            return "cond"
        return "+".join(on) or "null"

    def embed(self, condition: Condition) -> Condition:
        """The condition with every index replaced by its embedding; embeddings pass through.

        Raises:
            ValueError: An index has no known embedding module.
        """
        made = {}
        for name, value in condition.items():
            if not value.is_floating_point():
                if name not in self.embeddings:
                    raise ValueError(
                        f"embed: the condition {name!r} is an index, and the model does not say "
                        f"which module embeds it: give Denoiser(embeddings={{{name!r}: 'module'}})"
                    )
                made[name] = self.module(self.embeddings[name])(value)
        return condition.replace(**made)

    @cached_property
    def attention_layers(self) -> dict[str, AttentionLayer]:
        """Attention layers by name, for guides that read or change them; empty if unknown."""
        return find_attention(self.network)

    def match_attention(
        self, owner: str, patterns: str | tuple[str, ...], kinds: Iterable[Kind]
    ) -> list[AttentionLayer]:
        """The attention layers of some kinds that patterns name (`fairlead.layers`).

        Raises:
            ValueError: A pattern names none; lists those that exist.
        """
        known = {n: a for n, a in self.attention_layers.items() if a.kind in kinds}
        return match_layers(owner, patterns, known, f"{' or '.join(kinds)} attention layer")

    def module(self, name: str) -> nn.Module:
        """A module of the network by name.

        Raises:
            ValueError: There is none.
        """
        if isinstance(self.network, nn.Module):
            try:
                return self.network.get_submodule(name)
            except AttributeError:
                known = [n for n, _ in self.network.named_modules() if n]
        else:
            known = []
        raise ValueError(f"Denoiser: no module {name!r} in the network; {nearest(name, known)}")


def _outermost(network: object, patterns: str | tuple[str, ...]) -> list[nn.Module]:
    """The modules that patterns name and that are called, without those inside another."""
    if not patterns:
        return []
    named = dict(network.named_modules()) if isinstance(network, nn.Module) else {}
    called = {
        name: (name, module)
        for name, module in named.items()
        if name and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    }
    found = dict(match_layers("Denoiser", patterns, called, "module of the trunk"))
    inside = {n for n in found if any(n.startswith(f"{other}.") for other in found)}
    return [module for name, module in found.items() if name not in inside]


def _sorted_state(state: str) -> str:
    return "+".join(sorted(part.strip() for part in state.split("+")))


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of combining: float64 for float64 input, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def level_of(schedule: NoiseSchedule, t: float | Tensor, like: Tensor) -> Level:
    """Signal and noise at `t`, as numbers, or as tensors that broadcast against `like`."""
    if not isinstance(t, Tensor) or t.ndim == 0:
        return schedule.level(float(t))
    t = t.double()
    shape = (-1, *[1] * (like.ndim - 1))
    dtype = working_dtype(like)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return Level(t, alpha.reshape(shape).to(dtype), sigma.reshape(shape).to(dtype))  # type: ignore[arg-type]
