"""Terms: weighted differences of two branches, one file a method."""

from fairlead.guidance.terms.autoguidance import Autoguidance
from fairlead.guidance.terms.blur import BlurGuidance
from fairlead.guidance.terms.cfg import CFG
from fairlead.guidance.terms.cfgpp import CFGpp
from fairlead.guidance.terms.condition_mixture import ConditionMixture
from fairlead.guidance.terms.contrastive import Contrastive, DExperts
from fairlead.guidance.terms.face_diffuser import FaceDiffuser
from fairlead.guidance.terms.foreground import Foreground
from fairlead.guidance.terms.icg import ICG
from fairlead.guidance.terms.magic_fusion import MagicFusion
from fairlead.guidance.terms.multi import Multi
from fairlead.guidance.terms.noise_damped import NoiseDamped
from fairlead.guidance.terms.pag import PAG
from fairlead.guidance.terms.perp_neg import PerpNeg
from fairlead.guidance.terms.pplm import PPLM
from fairlead.guidance.terms.safe import Safe
from fairlead.guidance.terms.sag import SAG
from fairlead.guidance.terms.seg import SEG
from fairlead.guidance.terms.sine import SINE
from fairlead.guidance.terms.slg import SLG
from fairlead.guidance.terms.tsg import TSG
from fairlead.guidance.terms.unprompted import Unprompted

__all__ = [
    "CFG",
    "ICG",
    "PAG",
    "PPLM",
    "SAG",
    "SEG",
    "SINE",
    "SLG",
    "TSG",
    "Autoguidance",
    "BlurGuidance",
    "CFGpp",
    "ConditionMixture",
    "Contrastive",
    "DExperts",
    "FaceDiffuser",
    "Foreground",
    "MagicFusion",
    "Multi",
    "NoiseDamped",
    "PerpNeg",
    "Safe",
    "Unprompted",
]
