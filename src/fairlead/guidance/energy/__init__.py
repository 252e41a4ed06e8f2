"""Guides that follow the gradient of an energy, one file a method."""

from fairlead.guidance.energy.classifier_guidance import ClassifierGuidance

__all__ = ["ClassifierGuidance"]
