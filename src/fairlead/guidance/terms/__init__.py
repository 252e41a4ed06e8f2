"""Terms: weighted differences of two branches, one file a method."""

from fairlead.guidance.terms.autoguidance import Autoguidance
from fairlead.guidance.terms.cfg import CFG
from fairlead.guidance.terms.cfgpp import CFGpp
from fairlead.guidance.terms.condition_mixture import ConditionMixture
from fairlead.guidance.terms.icg import ICG
from fairlead.guidance.terms.multi import Multi
from fairlead.guidance.terms.pag import PAG
from fairlead.guidance.terms.perp_neg import PerpNeg
from fairlead.guidance.terms.tsg import TSG
from fairlead.guidance.terms.unprompted import Unprompted

__all__ = [
    "CFG",
    "ICG",
    "PAG",
    "TSG",
    "Autoguidance",
    "CFGpp",
    "ConditionMixture",
    "Multi",
    "PerpNeg",
    "Unprompted",
]
