"""Policies: which branches are evaluated, and what stands in for the others."""

from fairlead.guidance.policies.adaptive import AdaptiveGuidance
from fairlead.guidance.policies.cache import Cache
from fairlead.guidance.policies.linear import LinearGuidance
from fairlead.guidance.policies.merge import TokenMerging
from fairlead.guidance.policies.rcfg import ResidualCFG
from fairlead.guidance.policies.reuse import FeatureReuse
from fairlead.guidance.policies.reuse_maps import MapReuse

__all__ = [
    "AdaptiveGuidance",
    "Cache",
    "FeatureReuse",
    "LinearGuidance",
    "MapReuse",
    "ResidualCFG",
    "TokenMerging",
]
