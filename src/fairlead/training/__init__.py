"""Training of the reference networks: data, losses, loops, recipes, export."""

from fairlead.training.classifier import run_classifier, train_classifier
from fairlead.training.export import export
from fairlead.training.recipes import RECIPES, Training, run
from fairlead.training.trainer import Recipe, edm_loss, train

__all__ = [
    "RECIPES",
    "Recipe",
    "Training",
    "edm_loss",
    "export",
    "run",
    "run_classifier",
    "train",
    "train_classifier",
]
