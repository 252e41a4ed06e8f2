"""Rules: maps on the guided update, one file a method."""

from fairlead.guidance.rules.apg import APG
from fairlead.guidance.rules.bands import Bands
from fairlead.guidance.rules.frequency import Frequency
from fairlead.guidance.rules.fudge import Fudge
from fairlead.guidance.rules.magnitude import Magnitude
from fairlead.guidance.rules.match_statistics import MatchStatistics
from fairlead.guidance.rules.plausible import Nucleus, Plausible
from fairlead.guidance.rules.renorm import Renorm
from fairlead.guidance.rules.rescale import Rescale
from fairlead.guidance.rules.response import Response
from fairlead.guidance.rules.scfg import SCFG
from fairlead.guidance.rules.skim import Skim
from fairlead.guidance.rules.tangential import Tangential
from fairlead.guidance.rules.threshold import Threshold
from fairlead.guidance.rules.zero_init import ZeroInit
from fairlead.guidance.rules.zero_star import CFGZeroStar

__all__ = [
    "APG",
    "SCFG",
    "Bands",
    "CFGZeroStar",
    "Frequency",
    "Fudge",
    "Magnitude",
    "MatchStatistics",
    "Nucleus",
    "Plausible",
    "Renorm",
    "Rescale",
    "Response",
    "Skim",
    "Tangential",
    "Threshold",
    "ZeroInit",
]
