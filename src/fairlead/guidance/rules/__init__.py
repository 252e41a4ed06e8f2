"""Rules: maps on the guided update, one file a method."""

from fairlead.guidance.rules.apg import APG
from fairlead.guidance.rules.rescale import Rescale

__all__ = ["APG", "Rescale"]
