"""Recipes: functions that make guides under the papers' weights, most over several conditions."""

from fairlead.guidance.composition.chains import control, graph, joint, nested, split
from fairlead.guidance.composition.decoding import (
    context_aware,
    double,
    ssr_speech,
    steve1,
    switti,
    voxinstruct,
)
from fairlead.guidance.composition.mixtures import edits, history, interleaved, modalities, regions
from fairlead.guidance.composition.sums import compose, dual, experts, independent, style_mix

__all__ = [
    "compose",
    "context_aware",
    "control",
    "double",
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
    "ssr_speech",
    "steve1",
    "style_mix",
    "switti",
    "voxinstruct",
]
