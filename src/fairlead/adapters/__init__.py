"""Other people's networks and pipelines under a guide."""

from fairlead.adapters.diffusers import Layout, Steering, SteeringReport, as_guider, steer
from fairlead.adapters.networks import from_edm, from_flow, from_k_diffusion
from fairlead.adapters.side import SideNetwork

__all__ = [
    "Layout",
    "SideNetwork",
    "Steering",
    "SteeringReport",
    "as_guider",
    "from_edm",
    "from_flow",
    "from_k_diffusion",
    "steer",
]
