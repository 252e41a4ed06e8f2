"""Autoregressive models: the same guides over the log-probabilities of the next token."""

from fairlead.autoregressive.generate import Generated, generate
from fairlead.autoregressive.grammar import Grammar
from fairlead.autoregressive.heads import combine_heads
from fairlead.autoregressive.meaning import (
    entails,
    meaning_distance,
    trajectory_distance,
    trajectory_scores,
)
from fairlead.autoregressive.processor import GuidanceProcessor
from fairlead.autoregressive.prompts import Zeros, random_prompts
from fairlead.autoregressive.session import guided

__all__ = [
    "Generated",
    "Grammar",
    "GuidanceProcessor",
    "Zeros",
    "combine_heads",
    "entails",
    "generate",
    "guided",
    "meaning_distance",
    "random_prompts",
    "trajectory_distance",
    "trajectory_scores",
]
