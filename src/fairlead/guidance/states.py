"""Condition states as text: which conditions a branch sees, and in which form.

A state names what is there, joined by `+`: `text+image`. `all` is everything that was asked for,
`none` is null throughout. Each name may say more:

* `style=other`: the value that the state `other` holds, from `fl.sample(states=...)`;
* `history@0.3`: with noise of level 0.3, between 0 (clean) and 1 (pure noise, the null);
* `history[0:4]`: its first four frames, the others null.

`expert: text+image` asks another model, from `fl.sample(models=...)`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fairlead import nulls
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.branch import COND, Branch, Transform
from fairlead.guidance.context import Context
from fairlead.parameters import nearest

NULL_STATE = "null"
_ABSENT = re.compile(r"(?P<name>\w+)(?:=(?P<state>\w+))?")
_MODEL = re.compile(r"\s*(?P<model>\w+)\s*:(?P<rest>.*)")
_PART = re.compile(
    r"(?P<name>\w+)(?:=(?P<state>\w+))?"
    r"(?:\[(?P<start>-?\d*):(?P<stop>-?\d*)\])?"
    r"(?:@(?P<level>\d*\.?\d+(?:e-?\d+)?))?"
)


@dataclass(frozen=True)
class Noised(Transform):
    """A condition with noise of a level: `sqrt(1 - level^2) c + level n`.

    The noise is drawn once a sample and run, and is that of a null which is noise; at level 1 the
    condition is that null. Conditions that say the level, such as `history_level`, hold it.
    """

    name: str
    level: float

    def check(self, condition: Condition, denoiser: Denoiser) -> None:
        _noise_null(self.name, denoiser)

    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: Context) -> Condition:
        value, null = condition[self.name], _noise_null(self.name, denoiser)
        noise = ctx.run.fixed(value, f"noise of {self.name}")
        mixed = (1 - self.level**2) ** 0.5 * value + self.level * noise
        said = {
            k: torch.full_like(condition[k], self.level * float(top))
            for k, top in null.sets.items()
        }
        return condition.replace(**{self.name: mixed, **said})


@dataclass(frozen=True)
class Part(Transform):
    """Some frames of a condition, the first dimension behind the batch; the others are null."""

    name: str
    start: int | None
    stop: int | None

    def check(self, condition: Condition, denoiser: Denoiser) -> None:
        for name in self._names(denoiser):
            value = condition[name]
            if value.ndim < 2 or value.shape[1] != condition[self.name].shape[1]:
                raise ValueError(
                    f"the state takes frames {self.start}:{self.stop} of {self.name!r}, but "
                    f"{name!r} has no such frames: its shape is {tuple(value.shape)}"
                )

    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: Context) -> Condition:
        null = denoiser.null_condition(condition, (self.name,), ctx.run.fixed)
        changed = {}
        for name in self._names(denoiser):
            value = condition[name]
            inside = torch.zeros(value.shape[1], dtype=torch.bool, device=value.device)
            inside[self.start : self.stop] = True
            inside = inside.reshape(1, -1, *[1] * (value.ndim - 2))
            changed[name] = torch.where(inside, value, null[name])
        return condition.replace(**changed)

    def _names(self, denoiser: Denoiser) -> tuple[str, ...]:
        return (self.name, *nulls.of(denoiser.null.get(self.name)).sets)


def _noise_null(name: str, denoiser: Denoiser) -> nulls.Null:
    null = nulls.of(denoiser.null.get(name))
    if not null.noise:
        raise ValueError(
            f"the state asks for {name!r} with noise, which this model does not know: give "
            f"Denoiser(null={{{name!r}: nulls.noise(...)}})"
        )
    return null


def absent(owner: str, conditions: Sequence[str]) -> dict[str, str]:
    """What stands for each condition where it is not there, by name.

    Args:
        owner: Who asks, for errors.
        conditions: Names, each null where it is absent; `text=negative` takes the value that the
            state `negative` holds.

    Raises:
        ValueError: An entry is no such text, or a name is there twice.
    """
    found: dict[str, str] = {}
    for entry in conditions:
        match = _ABSENT.fullmatch(entry) if isinstance(entry, str) else None
        if match is None or match["name"] in ("all", "none"):
            raise ValueError(
                f"{owner}: conditions must be names, or such as 'text=negative', got {entry!r}"
            )
        if match["name"] in found:
            raise ValueError(f"{owner}: conditions name {match['name']!r} twice")
        found[match["name"]] = match["state"] or NULL_STATE
    return found


def branch(owner: str, state: str, conditions: Mapping[str, str]) -> Branch:
    """The branch of a state.

    Args:
        owner: Who asks, for errors.
        state: The text.
        conditions: What stands for each condition where it is absent, as `absent` gives it.

    Raises:
        ValueError: It is no such text, or names something that is none of the conditions.
    """
    if not isinstance(state, str):
        raise ValueError(f"{owner}: a state must be text, got {state!r}")
    prefixed = _MODEL.fullmatch(state)
    model, text = (prefixed["model"], prefixed["rest"]) if prefixed else ("", state)
    text = "".join(text.split())
    there: dict[str, str] = {}
    transforms: list[Transform] = []
    if text == "all":
        there = dict.fromkeys(conditions, "")
    elif text != "none":
        for part in text.split("+"):
            match = _PART.fullmatch(part)
            if match is None:
                raise ValueError(
                    f"{owner}: {state!r} is no state; write names joined by '+', 'all' or 'none'"
                )
            name = match["name"]
            if name not in conditions:
                raise ValueError(
                    f"{owner}: {state!r} names {name!r}, which is none of the conditions; "
                    f"{nearest(name, conditions)}"
                )
            if name in there:
                raise ValueError(f"{owner}: {state!r} names {name!r} twice")
            there[name] = match["state"] or ""
            transforms += _transforms(owner, name, match)
    off = {name: other for name, other in conditions.items() if name not in there}
    nulled = tuple(sorted(name for name, other in off.items() if other == NULL_STATE))
    taken = {name: other for name, other in off.items() if other != NULL_STATE}
    taken |= {name: other for name, other in there.items() if other}
    shown = f"{model}: {text}" if model else text
    made = Branch(
        shown,
        nulled=nulled,
        taken=tuple(sorted(taken.items())),
        model=model,
        transforms=tuple(transforms),
    )
    return COND if made == COND else made


def _transforms(owner: str, name: str, match: re.Match[str]) -> list[Transform]:
    made: list[Transform] = []
    if match["start"] is not None:
        start, stop = (int(match[k]) if match[k] else None for k in ("start", "stop"))
        made.append(Part(name, start, stop))
    if match["level"] is not None:
        level = float(match["level"])
        if level > 1:
            raise ValueError(f"{owner}: the level of {name!r} must be in [0, 1], got {level}")
        if level > 0:
            made.append(Noised(name, level))
    return made
