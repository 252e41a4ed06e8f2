"""Other people's networks and pipelines under a guide."""

from fairlead.adapters.networks import from_edm, from_flow, from_k_diffusion

__all__ = ["from_edm", "from_flow", "from_k_diffusion"]
