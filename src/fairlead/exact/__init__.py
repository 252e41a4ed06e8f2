"""Distributions whose scores, denoisers and guided targets are known in closed form.

Guidance on them has no network error, so results compare with closed forms, not snapshots.
"""

from fairlead.exact.coverage import covered, group_shares, mode_kl, outlier_rate
from fairlead.exact.distances import energy_distance, mmd, nll, sliced_wasserstein
from fairlead.exact.distribution import Distribution, ExactDenoiser
from fairlead.exact.gaussian_pair import GaussianPair
from fairlead.exact.labelled import LabelledDenoiser, LabelledMixture
from fairlead.exact.mixture import GaussianMixture
from fairlead.exact.recursions import (
    ddim_variance,
    ddpm_variance,
    euler_ode_variance,
    euler_sde_variance,
    t1_levels,
)
from fairlead.exact.reflected import ReflectedMixture
from fairlead.exact.sequence import GaussianSequence, SequenceDenoiser
from fairlead.exact.tilted import TiltedDensity, Weighted, tilted_samples
from fairlead.exact.tokens import GOLDEN, TokenTable, golden_tokens, token_law
from fairlead.exact.tree import Tree, fractal_tree
from fairlead.metrics.bootstrap import Estimate

__all__ = [
    "GOLDEN",
    "Distribution",
    "Estimate",
    "ExactDenoiser",
    "GaussianMixture",
    "GaussianPair",
    "GaussianSequence",
    "LabelledDenoiser",
    "LabelledMixture",
    "ReflectedMixture",
    "SequenceDenoiser",
    "TiltedDensity",
    "TokenTable",
    "Tree",
    "Weighted",
    "covered",
    "ddim_variance",
    "ddpm_variance",
    "energy_distance",
    "euler_ode_variance",
    "euler_sde_variance",
    "fractal_tree",
    "golden_tokens",
    "group_shares",
    "mmd",
    "mode_kl",
    "nll",
    "outlier_rate",
    "sliced_wasserstein",
    "t1_levels",
    "tilted_samples",
    "token_law",
]
