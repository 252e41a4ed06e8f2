"""Energies: what guides steer by. Lower is better; minus a log-probability, where it is one.

>>> import torch, fairlead as fl
>>> y = fl.energy.Linear(torch.tensor([[1.0, 0.7]]), torch.tensor([1.0]), noise=0.5)
>>> guide = fl.ClassifierGuidance(y, 0.5)
>>> str(guide)
"classifier_guidance('linear', scale=0.5)"
"""

from fairlead.energy.attention import Boxes, word_positions
from fairlead.energy.base import Energy, Function, Judge
from fairlead.energy.classifier import Classifier, Ensemble, Similarity
from fairlead.energy.closed_form import ClosedFormJudge
from fairlead.energy.decoded import decoded
from fairlead.energy.images import Colour, Palette, Symmetry, TotalVariation
from fairlead.energy.linear import Linear, blur, downsampling, inpainting, projections
from fairlead.energy.penetration import Penetration
from fairlead.energy.posterior import Posterior

__all__ = [
    "Boxes",
    "Classifier",
    "ClosedFormJudge",
    "Colour",
    "Energy",
    "Ensemble",
    "Function",
    "Judge",
    "Linear",
    "Palette",
    "Penetration",
    "Posterior",
    "Similarity",
    "Symmetry",
    "TotalVariation",
    "blur",
    "decoded",
    "downsampling",
    "inpainting",
    "projections",
    "word_positions",
]
