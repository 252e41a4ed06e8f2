"""Guidance of tokens: discrete diffusion, flows on rates and on the simplex."""

from fairlead.discrete.best_of import BestOf
from fairlead.discrete.classifier import Classifier
from fairlead.discrete.denoiser import TokenDenoiser
from fairlead.discrete.distilled import Distilled, Pairs, distillation_loss, pairs
from fairlead.discrete.likelihood import log_likelihood
from fairlead.discrete.process import (
    PROCESSES,
    Masked,
    MaskedUniform,
    Process,
    Transition,
    Uniform,
    transition,
)
from fairlead.discrete.rates import Rates
from fairlead.discrete.sampler import TOKEN_SAMPLERS, Ancestral, TokenSampler
from fairlead.discrete.sampling import TokenResult, sample
from fairlead.discrete.simplex import (
    BayesianFlow,
    BayesianFlowSampler,
    Dirichlet,
    DirichletFlow,
)
from fairlead.discrete.unmask import MaskGIT, Unmask
from fairlead.discrete.vq import VQ

__all__ = [
    "PROCESSES",
    "TOKEN_SAMPLERS",
    "VQ",
    "Ancestral",
    "BayesianFlow",
    "BayesianFlowSampler",
    "BestOf",
    "Classifier",
    "Dirichlet",
    "DirichletFlow",
    "Distilled",
    "MaskGIT",
    "Masked",
    "MaskedUniform",
    "Pairs",
    "Process",
    "Rates",
    "TokenDenoiser",
    "TokenResult",
    "TokenSampler",
    "Transition",
    "Uniform",
    "Unmask",
    "distillation_loss",
    "log_likelihood",
    "pairs",
    "sample",
    "transition",
]
