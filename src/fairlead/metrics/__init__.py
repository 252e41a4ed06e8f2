"""Metrics of samples from their features, logits and pixels, each with its uncertainty.

Features come from elsewhere, as plain tensors; results on a small network are Fréchet
distances `fd`, never FID.
"""

from fairlead.metrics.bootstrap import Estimate, bootstrap, mean_interval
from fairlead.metrics.classifier import (
    class_accuracy,
    class_confidence,
    class_log_probability,
    inception_score,
)
from fairlead.metrics.diversity import class_diversity, vendi_score
from fairlead.metrics.frechet import (
    frechet_distance,
    frechet_from_features,
    frechet_infinity,
    moments,
)
from fairlead.metrics.inception import inception_fid
from fairlead.metrics.judges import JudgeReport, judge_report
from fairlead.metrics.neighbours import (
    authenticity,
    density_coverage,
    expected_coverage,
    neighbour_metrics,
    precision_recall,
)
from fairlead.metrics.report import report
from fairlead.metrics.saturation import clipped_fraction, saturation

__all__ = [
    "Estimate",
    "JudgeReport",
    "authenticity",
    "bootstrap",
    "class_accuracy",
    "class_confidence",
    "class_diversity",
    "class_log_probability",
    "clipped_fraction",
    "density_coverage",
    "expected_coverage",
    "frechet_distance",
    "frechet_from_features",
    "frechet_infinity",
    "inception_fid",
    "inception_score",
    "judge_report",
    "mean_interval",
    "moments",
    "neighbour_metrics",
    "precision_recall",
    "report",
    "saturation",
    "vendi_score",
]
