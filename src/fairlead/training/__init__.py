"""Training of the reference networks: data, losses, loops, recipes, export."""

from fairlead.training.alignment import cca_loss, sequence_log_prob
from fairlead.training.classifier import run_classifier, train_classifier
from fairlead.training.dropout import Drawn, DropoutTable, history_levels
from fairlead.training.export import export
from fairlead.training.inpainting import erased, inpainting_loss, train_inpainter
from fairlead.training.recipes import RECIPES, Training, run
from fairlead.training.sequences import TOKEN_RECIPES, TokenTraining, run_tokens
from fairlead.training.trainer import Budget, Recipe, edm_loss, fit, train

__all__ = [
    "RECIPES",
    "TOKEN_RECIPES",
    "Budget",
    "Drawn",
    "DropoutTable",
    "Recipe",
    "TokenTraining",
    "Training",
    "cca_loss",
    "edm_loss",
    "erased",
    "export",
    "fit",
    "history_levels",
    "inpainting_loss",
    "run",
    "run_classifier",
    "run_tokens",
    "sequence_log_prob",
    "train",
    "train_classifier",
    "train_inpainter",
]
