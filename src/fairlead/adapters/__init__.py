"""Other people's networks and pipelines under a guide."""

from fairlead.adapters.diffusers import Layout, Steering, SteeringReport, as_guider, steer
from fairlead.adapters.networks import from_edm, from_flow, from_k_diffusion

__all__ = [
    "Layout",
    "Steering",
    "SteeringReport",
    "as_guider",
    "from_edm",
    "from_flow",
    "from_k_diffusion",
    "steer",
]
