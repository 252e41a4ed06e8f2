"""How a pipeline lays out the branches of its own guidance."""

from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["null", "cond"]


@dataclass(frozen=True)
class Layout:
    """Which rows, or which calls in a row, are which branch.

    Attributes:
        kind: `rows`, one call for all branches; or `calls`, one call a branch.
        slots: Names of the branches, in order.
        form: Where the pipeline's own formula starts: `u + w (c - u)` is `null`,
            `c + (w - 1) (c - u)` is `cond`. Equal but for rounding.
    """

    kind: Literal["rows", "calls"]
    slots: tuple[str, ...]
    form: Form = "null"

    @property
    def null(self) -> bool:
        """Whether there is a null branch."""
        return "null" in self.slots

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions that the branches differ in."""
        return next((CONDITIONS[s] for s in self.slots if s in CONDITIONS), frozenset({"text"}))

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(self.slots)}"

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """From text such as `rows null cond`.

        Raises:
            ValueError: The text is no layout.
        """
        kind, *slots = text.split()
        twice = len(set(slots)) < len(slots)
        if kind not in ("rows", "calls") or "cond" not in slots or twice:
            raise ValueError(
                "steer: layout must be 'rows' or 'calls' and the names of the branches in order, "
                f"'cond' among them, such as 'rows null cond'; got {text!r}"
            )
        return cls(kind, tuple(slots))  # type: ignore[arg-type]


SINGLE = Layout("rows", ("cond",))
"""A pipeline that evaluates the condition alone."""

OVERRIDES: dict[str, tuple[str, ...]] = {
    "StableDiffusionInstructPix2PixPipeline": ("cond", "image", "null"),
    "StableDiffusionXLInstructPix2PixPipeline": ("cond", "image", "null"),
}
"""Slots that cannot be told from the inputs, by pipeline: `image` is the image without the text."""

NULLED: dict[tuple[str, ...], str] = {("text",): "image"}
"""Slots in which single conditions are null."""

CONDITIONS = {"image": frozenset({"text", "image"})}
"""Names of the conditions of layouts that have a certain slot; of others it is the text alone."""


def override(pipe: Any, slots: int) -> tuple[str, ...] | None:
    """The known slots of a pipeline."""
    for cls in type(pipe).__mro__:
        known = OVERRIDES.get(cls.__name__)
        if known and len(known) == slots:
            return known
    return None
