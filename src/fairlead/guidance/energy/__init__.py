"""Guides that follow a judge, one file a method."""

from fairlead.guidance.energy.classifier_guidance import ClassifierGuidance
from fairlead.guidance.energy.dcbg import DCBG
from fairlead.guidance.energy.descent import Descent
from fairlead.guidance.energy.dps import DPS
from fairlead.guidance.energy.dreamguider import Dreamguider
from fairlead.guidance.energy.elucd import EluCD
from fairlead.guidance.energy.flowchef import FlowChef
from fairlead.guidance.energy.freedom import FreeDoM
from fairlead.guidance.energy.gfcg import GFCG
from fairlead.guidance.energy.layout import Layout
from fairlead.guidance.energy.lgd import LGD
from fairlead.guidance.energy.mpgd import MPGD
from fairlead.guidance.energy.norm_guidance import NormGuidance
from fairlead.guidance.energy.tfg import TFG
from fairlead.guidance.energy.ugd import UGD

__all__ = [
    "DCBG",
    "DPS",
    "GFCG",
    "LGD",
    "MPGD",
    "TFG",
    "UGD",
    "ClassifierGuidance",
    "Descent",
    "Dreamguider",
    "EluCD",
    "FlowChef",
    "FreeDoM",
    "Layout",
    "NormGuidance",
]
