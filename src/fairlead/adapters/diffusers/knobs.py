"""The arguments with which pipelines scale their own guidance."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAIN = ("true_cfg_scale", "guidance_scale")
"""What switches guidance, the first that a pipeline has."""

NEUTRAL: dict[str, Any] = {
    "cfg_normalization": False,
    "cfg_trunc_ratio": 1.0,
    "cfg_truncation": 1.0,
    "guidance_rescale": 0.0,
    "guidance_scale_2": None,
    "pag_adaptive_scale": 0.0,
    "pag_scale": 0.0,
    "skip_guidance_layers": None,
    "use_dynamic_cfg": False,
}
"""Further parts of pipelines' own guidance, and where they do nothing."""

FOLLOWING = ("image_guidance_scale",)
"""Scales beside the main one that must be on with it."""

KNOBS: dict[str, dict[str, float]] = {"ZImage": {"off": 0.0}}
"""Where guidance is off at another value than 1, by the beginning of the pipeline's name."""

ON = 2.0
"""A scale at which every pipeline prepares all of its branches."""


@dataclass(frozen=True)
class Knobs:
    """How a pipeline's own guidance is switched.

    Attributes:
        main: The argument, or `None`.
        off: Its value without guidance.
        rest: Further arguments that are set with it.
        defaults: The values that the pipeline's signature gives.
    """

    main: str | None
    off: float
    rest: tuple[str, ...]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Any, defaults: Mapping[str, Any]) -> "Knobs":
        """The knobs among a pipeline's arguments."""
        main = next((name for name in MAIN if name in defaults), None)
        rest = tuple(n for n in (*NEUTRAL, *FOLLOWING) if n in defaults)
        special = next((v for k, v in KNOBS.items() if type(pipe).__name__.startswith(k)), {})
        return cls(main, special.get("off", 1.0), rest, defaults)

    def set(self, arguments: Mapping[str, Any], on: bool) -> dict[str, Any]:
        """The arguments with guidance on or off."""
        made = dict(arguments)
        if self.main is not None:
            made[self.main] = ON if on else self.off
        for name in self.rest:
            made[name] = ON if name in FOLLOWING else NEUTRAL[name]
        negative = [n for n in self.defaults if n.startswith("negative_")]
        if not on:
            made.update(dict.fromkeys(n for n in negative if "prompt" in n))
        elif self.main == "true_cfg_scale" and all(made.get(n) is None for n in negative):
            made["negative_prompt"] = like_prompt("", made)
        return made

    def inert(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The knobs that the guide stands in for, and the values the caller gave them."""
        names = [self.main, *self.rest] if self.main else list(self.rest)
        return {n: given[n] for n in names if n in given}

    def warn(self, given: Mapping[str, Any], guide: str) -> None:
        """Says which scales that the caller gave are without effect."""
        lost = {n: v for n, v in self.inert(given).items() if not _equal(v, self.defaults[n])}
        if lost:
            said = ", ".join(f"{n}={v!r}" for n, v in lost.items())
            warnings.warn(
                f"steer: {said} has no effect: the guide {guide!r} decides; leave it out",
                stacklevel=5,
            )


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):
        return False


def like_prompt(text: str | list[str], arguments: Mapping[str, Any]) -> str | list[str]:
    """A prompt in the form of the one that a call gives: one text, or one a sample.

    Raises:
        ValueError: There are as many texts as neither one nor the prompts of the call.
    """
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if isinstance(prompt, list):
        size = len(prompt)
    elif prompt is None and embeds is not None:
        size = len(embeds)
    else:
        size = 0
    if isinstance(text, str):
        return [text] * size if size else text
    if len(text) != max(size, 1):
        raise ValueError(
            f"steer: {len(text)} texts were given for a branch, and the call has "
            f"{max(size, 1)} prompt(s)"
        )
    return list(text) if size else text[0]
