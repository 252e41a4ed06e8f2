"""Schedules: weights and conditions over the course of a run, one file a method."""

from fairlead.guidance.weight_schedules.adain import AdaIN
from fairlead.guidance.weight_schedules.branch_threshold import BranchThreshold
from fairlead.guidance.weight_schedules.cads import CADS, DynamicCFG
from fairlead.guidance.weight_schedules.coin import Coin
from fairlead.guidance.weight_schedules.curve import Curve
from fairlead.guidance.weight_schedules.interval import Interval
from fairlead.guidance.weight_schedules.nag import NAG
from fairlead.guidance.weight_schedules.oscillating import Oscillating
from fairlead.guidance.weight_schedules.ramp import Ramp
from fairlead.guidance.weight_schedules.redilate import Redilate
from fairlead.guidance.weight_schedules.region import Part, Region

__all__ = [
    "CADS",
    "NAG",
    "AdaIN",
    "BranchThreshold",
    "Coin",
    "Curve",
    "DynamicCFG",
    "Interval",
    "Oscillating",
    "Part",
    "Ramp",
    "Redilate",
    "Region",
]
