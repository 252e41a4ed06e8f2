"""Pipelines of diffusers under a guide."""

from fairlead.adapters.diffusers.layouts import Layout
from fairlead.adapters.diffusers.modular import as_guider
from fairlead.adapters.diffusers.report import SteeringReport
from fairlead.adapters.diffusers.steering import Steering, steer

__all__ = ["Layout", "Steering", "SteeringReport", "as_guider", "steer"]
