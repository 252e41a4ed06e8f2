"""Terms: weighted differences of two branches, one file a method."""

from fairlead.guidance.terms.autoguidance import Autoguidance
from fairlead.guidance.terms.blur import BlurGuidance
from fairlead.guidance.terms.cfg import CFG
from fairlead.guidance.terms.cfgpp import CFGpp
from fairlead.guidance.terms.condition_mixture import ConditionMixture
from fairlead.guidance.terms.contrastive import Contrastive, DExperts
from fairlead.guidance.terms.icg import ICG
from fairlead.guidance.terms.multi import Multi
from fairlead.guidance.terms.pag import PAG
from fairlead.guidance.terms.perp_neg import PerpNeg
from fairlead.guidance.terms.safe import Safe
from fairlead.guidance.terms.sag import SAG
from fairlead.guidance.terms.seg import SEG
from fairlead.guidance.terms.slg import SLG
from fairlead.guidance.terms.tsg import TSG

__all__ = [
    "CFG",
    "ICG",
    "PAG",
    "SAG",
    "SEG",
    "SLG",
    "TSG",
    "Autoguidance",
    "BlurGuidance",
    "CFGpp",
    "ConditionMixture",
    "Contrastive",
    "DExperts",
    "Multi",
    "PerpNeg",
    "Safe",
]
