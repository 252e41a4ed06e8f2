"""Recipes over several conditions: functions that make `multi` terms, under the papers' weights."""

from fairlead.guidance.composition.chains import control, graph, joint, nested, split
from fairlead.guidance.composition.mixtures import edits, history, interleaved, modalities, regions
from fairlead.guidance.composition.sums import compose, dual, experts, independent, style_mix

__all__ = [
    "compose",
    "control",
    "dual",
    "edits",
    "experts",
    "graph",
    "history",
    "independent",
    "interleaved",
    "joint",
    "modalities",
    "nested",
    "regions",
    "split",
    "style_mix",
]
