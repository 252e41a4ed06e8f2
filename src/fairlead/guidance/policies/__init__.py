"""Policies: which branches are evaluated, and what stands in for the others."""

from fairlead.guidance.policies.adaptive import AdaptiveGuidance

__all__ = ["AdaptiveGuidance"]
