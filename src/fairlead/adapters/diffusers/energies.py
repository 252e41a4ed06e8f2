"""Energies in pipelines: which guides can have them, and what they are shown."""

from collections.abc import Mapping
from typing import Any

from fairlead.adapters.diffusers.decoding import Decoder, Grid
from fairlead.energy.base import Energy, find
from fairlead.energy.decoded import decoded
from fairlead.guidance.algebra import Guide
from fairlead.guidance.energy.gfcg import GFCG


def require_steerable(owner: str, guide: Guide, *, moves: bool = False) -> None:
    """Refuses terms that ask for more than predictions, energies and steps.

    Args:
        owner: Who asks.
        guide: The guide.
        moves: Whether the sample may be moved before a step.

    Raises:
        ValueError: Names the term.
    """
    for node in guide.nodes():
        if getattr(node, "moves", False) and not moves:
            raise ValueError(
                f"{owner}: {node} moves the sample before a step, of which a guider is not told; "
                "use fl.steer or fl.sample, or a guide that acts on predictions"
            )
        if isinstance(node, GFCG):
            raise ValueError(
                f"{owner}: {node} asks for the class of each sample as a condition, and pipelines "
                "are given prompts; use fl.sample"
            )


def energies_of(guide: Guide, energies: Mapping[str, Any]) -> dict[str, Energy]:
    """The energies that a guide asks for, by name: among the given ones, or carried by it.

    Raises:
        ValueError: One is missing, or of the wrong kind.
    """
    made = {}
    for node in guide.nodes():
        for name in getattr(node, "energies", ()):
            made[str(name)] = find(node.name, name, energies)
            node.suits(made[str(name)])  # type: ignore[attr-defined]
    return made


def shown(
    guide: Guide, energies: Mapping[str, Any], decode: Decoder | None, grid: Grid
) -> dict[str, Energy]:
    """The energies of a guide as energies of latents.

    Args:
        guide: The guide.
        energies: Those that were given, by name.
        decode: What energies of clean samples are shown, `None` for the latents themselves.
        grid: The grid of the latents' patches.
    """
    made = energies_of(guide, energies)
    if decode is None:
        return made
    return {
        name: e if e.noisy or e.attention else decoded(e, lambda z: decode(z, grid))
        for name, e in made.items()
    }
