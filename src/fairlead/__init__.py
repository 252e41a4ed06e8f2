"""Guidance for generative models, as one composable algebra.

>>> import fairlead as fl
>>> guide = fl.CFG(4.0) + fl.PAG(3.0) | fl.Rescale(0.7) | fl.Interval(0.1, 0.8)
>>> fl.guide(str(guide)) == guide
True
"""

from fairlead import (
    adapters,
    discrete,
    energy,
    exact,
    metrics,
    nulls,
    prediction,
    recipes,
    samplers,
    schedules,
    selection,
    trajectories,
)
from fairlead.adapters import as_guider, steer
from fairlead.autoregressive import Generated, GuidanceProcessor, generate
from fairlead.composition import MixtureDenoiser
from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.fitting import fit_linear, search_ratios
from fairlead.guidance.algebra import Guide, Policy, Rule, Schedule, Term, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.combine import combine
from fairlead.guidance.context import Context, Run
from fairlead.guidance.energy import *  # noqa: F403
from fairlead.guidance.energy import __all__ as _energy
from fairlead.guidance.parallel import Parallel
from fairlead.guidance.policies import *  # noqa: F403
from fairlead.guidance.policies import __all__ as _policies
from fairlead.guidance.rules import *  # noqa: F403
from fairlead.guidance.rules import __all__ as _rules
from fairlead.guidance.spec import guide
from fairlead.guidance.terms import *  # noqa: F403
from fairlead.guidance.terms import __all__ as _terms
from fairlead.guidance.weight_schedules import *  # noqa: F403
from fairlead.guidance.weight_schedules import __all__ as _weight_schedules
from fairlead.models.zoo import load
from fairlead.reference import ReferenceDenoiser, with_reference
from fairlead.sampling import Interrupted, Result, Step, sample
from fairlead.stages import Stage, sample_stages
from fairlead.stream import SimilarityFilter, Stream
from fairlead.teacher import Taught, sample_taught
from fairlead.text import TextError
from fairlead.views import ViewsDenoiser

__version__ = "0.1.0"

__all__ = [
    "Branch",
    "Condition",
    "Context",
    "Denoiser",
    "Generated",
    "GuidanceProcessor",
    "Guide",
    "Interrupted",
    "MixtureDenoiser",
    "Parallel",
    "Policy",
    "ReferenceDenoiser",
    "Result",
    "Rule",
    "Run",
    "Schedule",
    "SimilarityFilter",
    "Stage",
    "Step",
    "Stream",
    "Taught",
    "Term",
    "TextError",
    "ViewsDenoiser",
    "adapters",
    "as_guider",
    "combine",
    "discrete",
    "energy",
    "exact",
    "fit_linear",
    "generate",
    "guide",
    "load",
    "metrics",
    "nulls",
    "prediction",
    "recipes",
    "register",
    "sample",
    "sample_stages",
    "sample_taught",
    "samplers",
    "schedules",
    "selection",
    "steer",
    "trajectories",
    "search_ratios",
    "with_reference",
    *_energy,
    *_policies,
    *_rules,
    *_terms,
    *_weight_schedules,
]
