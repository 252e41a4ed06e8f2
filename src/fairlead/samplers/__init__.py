"""Samplers: update rules from one noise level to the next.

>>> import fairlead as fl
>>> fl.samplers.get("unipc(order=3)") == fl.samplers.UniPC(order=3)
True
"""

from fairlead.prediction import Prediction
from fairlead.samplers.base import (
    SAMPLERS,
    Model,
    Sampler,
    get,
    noise_of,
    register,
    transfer,
)
from fairlead.samplers.dc import DC, RatioModel
from fairlead.samplers.ddim import DDIM
from fairlead.samplers.ddpm import DDPM
from fairlead.samplers.dpm import DPMpp1S, DPMpp2M, DPMpp2MSDE, DPMpp2S
from fairlead.samplers.euler import Euler, EulerAncestral
from fairlead.samplers.feynman_kac import FeynmanKac
from fairlead.samplers.heun import Heun
from fairlead.samplers.mcmc import MCMC
from fairlead.samplers.overshoot import Overshoot
from fairlead.samplers.pcg import PCG
from fairlead.samplers.recurrence import Recurrence
from fairlead.samplers.reflected import Reflected
from fairlead.samplers.repaint import RePaint
from fairlead.samplers.steering import Steering
from fairlead.samplers.svdd import SVDD
from fairlead.samplers.unipc import UniPC

__all__ = [
    "DC",
    "DDIM",
    "DDPM",
    "MCMC",
    "PCG",
    "SAMPLERS",
    "SVDD",
    "DPMpp1S",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp2S",
    "Euler",
    "EulerAncestral",
    "FeynmanKac",
    "Heun",
    "Model",
    "Overshoot",
    "Prediction",
    "RatioModel",
    "RePaint",
    "Recurrence",
    "Reflected",
    "Sampler",
    "Steering",
    "UniPC",
    "get",
    "noise_of",
    "register",
    "transfer",
]
