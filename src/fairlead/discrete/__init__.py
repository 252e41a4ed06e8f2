"""Guidance of tokens: discrete diffusion, flows on rates and on the simplex."""

from fairlead.discrete.process import PROCESSES, Masked, Process, Uniform

__all__ = ["PROCESSES", "Masked", "Process", "Uniform"]
