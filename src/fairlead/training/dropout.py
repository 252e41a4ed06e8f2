"""Condition dropout: which states of several conditions a model sees in training, and how often."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Guide
from fairlead.guidance.branch import Branch
from fairlead.guidance.guided import branches
from fairlead.guidance.spec import guide as parse
from fairlead.guidance.states import absent, branch


@dataclass(frozen=True)
class Drawn:
    """The states that were drawn for a batch.

    Attributes:
        condition: The conditions under them, `(B, ...)` each.
        state: State of each sample.
    """

    condition: Condition
    state: tuple[str, ...]

    def where(self, state: str) -> Tensor:
        """Which samples are in a state, `(B,)`: for targets that change with it."""
        return torch.tensor([s == state for s in self.state])


@dataclass(frozen=True)
class DropoutTable:
    """A probability for each state of several conditions.

    A guide is supported by a table if each state that it evaluates has a probability.

    Args:
        conditions: Names of the conditions that may be dropped.
        states: Probability of each state, as `multi` writes them (`all`, `image+text`, `none`,
            `text=negative`); they add up to 1.

    Raises:
        ValueError: A state cannot be read, or the probabilities are not such.

    Example:
        >>> from fairlead.training import DropoutTable
        >>> table = DropoutTable.independent({"text": 0.1, "image": 0.1})
        >>> {k: round(v, 2) for k, v in table.states.items()}
        {'all': 0.81, 'text': 0.09, 'image': 0.09, 'none': 0.01}
        >>> table.supports("nested(['image', 'text'], [1.5, 7.5])")
        True
    """

    conditions: Sequence[str]
    states: Mapping[str, float]

    def __post_init__(self) -> None:
        known = absent("DropoutTable", self.conditions)
        made: dict[Branch, str] = {}
        for state, p in self.states.items():
            if not isinstance(p, (int, float)) or not 0 <= p <= 1:
                raise ValueError(f"DropoutTable: {state!r} must have a probability, got {p!r}")
            at = branch("DropoutTable", state, known)
            if at.transforms or at.model:
                raise ValueError(f"DropoutTable: {state!r} is no state to train on")
            if at in made:
                raise ValueError(f"DropoutTable: {state!r} and {made[at]!r} are one state")
            made[at] = state
        total = sum(self.states.values())
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"DropoutTable: probabilities must add up to 1, got {total:g}")

    @classmethod
    def joint(cls, conditions: Sequence[str], p: float = 0.1) -> "DropoutTable":
        """All conditions are dropped together, with probability `p`: CFG."""
        return cls(conditions, {"all": 1 - p, "none": p})

    @classmethod
    def independent(cls, p: Mapping[str, float]) -> "DropoutTable":
        """Each condition is dropped by itself, with its own probability.

        0.1 and 0.1 in VoiceLDM and ReMoDiffuse, 0.1 (text) and 0.08 (image) in STIV, 0.05 (text)
        and 0.05 (camera) in camera motion guidance, 0.1 in DiffuseStyleGesture, 0.5 in the
        independent form of DiffPoseTalk.
        """
        table: dict[str, float] = {}
        for kept in product((True, False), repeat=len(p)):
            on = [name for name, keep in zip(p, kept, strict=True) if keep]
            state = "all" if len(on) == len(p) else "+".join(on) or "none"
            table[state] = math.prod(
                1 - q if keep else q for q, keep in zip(p.values(), kept, strict=True)
            )
        return cls(list(p), table)

    @classmethod
    def pix2pix(cls, image: str = "image", text: str = "text", p: float = 0.05) -> "DropoutTable":
        """InstructPix2Pix: text alone, image alone and both are dropped, with `p` each."""
        states = {"all": 1 - 3 * p, image: p, "none": p, text: p}
        return cls([image, text], states)

    @classmethod
    def chain(cls, conditions: Sequence[str], p: Sequence[float]) -> "DropoutTable":
        """The states of a nested chain alone: none, the first, the first two, ... , all.

        DiffPoseTalk: 0.1, 0.35, 0.55 over audio and style (its comment says 0.1, 0.45, 0.45).
        """
        names = list(absent("DropoutTable", conditions))
        if len(p) != len(names) + 1:
            raise ValueError(
                f"DropoutTable: a chain of {len(names)} conditions has {len(names) + 1} states, "
                f"got {len(p)} probabilities"
            )
        states = ["none", *("+".join(names[: i + 1]) for i in range(len(names)))]
        return cls(conditions, dict(zip(states, p, strict=True)))

    def draw(
        self,
        denoiser: Denoiser,
        condition: Mapping[str, Any],
        generator: torch.Generator | None = None,
        states: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Drawn:
        """Draws a state for each sample and puts the nulls of a denoiser in place.

        Args:
            denoiser: Says what null means.
            condition: Values by name, each of the batch `(B, ...)`.
            generator: Where the draws come from.
            states: Further conditions by name, for states such as `text=negative`.

        Raises:
            ValueError: A condition has no null, or a state was not given.
        """
        whole = condition if isinstance(condition, Condition) else Condition(condition)
        batch = whole.batch or 1
        names = list(self.states)
        weights = torch.tensor(list(self.states.values()), dtype=torch.float64)
        picks = torch.multinomial(weights, batch, replacement=True, generator=generator)
        known, out = absent("DropoutTable", self.conditions), whole
        for i, name in enumerate(names):
            mask = picks == i
            if not bool(mask.any()):
                continue
            at, value = branch("DropoutTable", name, known), whole
            for part, state in at.taken:
                if state not in (states or {}):
                    raise ValueError(f"DropoutTable: {name!r} needs states={{{state!r}: ...}}")
                value = value.replace(**{part: (states or {})[state][part]})
            if at.nulled:
                value = denoiser.null_condition(value, at.nulled)
            out = value.expand(batch).where(mask, out)
        return Drawn(out, tuple(names[i] for i in picks.tolist()))

    def supports(self, guide: Guide | str) -> bool:
        """Whether every state that a guide evaluates was trained."""
        return not self.missing(guide)

    def missing(self, guide: Guide | str) -> list[str]:
        """Names of the branches of a guide whose state has no probability.

        Branches of other models are not looked at; noise and parts of a condition count as the
        condition.
        """
        known = absent("DropoutTable", self.conditions)
        trained = {branch("DropoutTable", s, known) for s, p in self.states.items() if p > 0}
        keys = {(b.state, b.nulled, b.taken) for b in trained}
        if ("cond", tuple(sorted(known)), ()) in keys:
            keys.add(("null", (), ()))
        asked = parse(guide).describe().coefficients
        found = [b for b in branches(parse(guide)) if b.name in asked and not b.model]
        return [b.name for b in found if (b.state, b.nulled, b.taken) not in keys]

    @property
    def trained(self) -> frozenset[str]:
        """The states as `Denoiser(trained=...)` takes them."""
        known = absent("DropoutTable", self.conditions)
        made = set()
        for state, p in self.states.items():
            at = branch("DropoutTable", state, known)
            if p > 0 and not at.taken:
                on = sorted(name for name in known if name not in at.nulled)
                made.add("cond" if not at.nulled else "+".join(on) or "null")
        return frozenset(made)


def history_levels(batch: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels for training on any history: uniform in [0, 1], independent for each frame.

    Args:
        batch: Number of samples.
        frames: Number of frames.
        generator: Where the draws come from.

    Returns:
        `(batch, frames)`.
    """
    return torch.rand(batch, frames, generator=generator)
