"""Annealed Markov chains as correctors."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fairlead.parameters import Range, choose
from fairlead.samplers.base import Model, added_variance, register
from fairlead.samplers.particles import square
from fairlead.samplers.wrapper import Wrapper
from fairlead.schedules import Level

CHAINS = ("ula", "mala", "uhmc", "hmc")
DEFAULT_H = {"ula": 2.0, "mala": 0.035, "uhmc": 0.1, "hmc": 0.1}


@register("mcmc", ids=("S045",))
@dataclass(frozen=True)
class MCMC(Wrapper):
    r"""Lets a Markov chain settle at each new level on the guided density there.

    Composed scores (products, tilts, negations) are not those of the noised composed density, so
    reverse diffusion alone misses it; chains at every level do not. With ``s`` the guided score
    at the new level and ``n`` fresh noise, ``steps`` times:

    * ``ula``: ``x <- x + h s + sqrt(2 h) n``.
    * ``mala``: proposes as ``ula`` and accepts with probability
      ``min(1, p(x') q(x | x') / (p(x) q(x' | x)))``.
    * ``uhmc``: ``m <- d m + sqrt(1 - d^2) M n``, then ``leapfrog`` times half a kick
      ``m += h s / 2``, the drift ``x += h m / M^2``, and half a kick.
    * ``hmc``: the same, accepted with ``min(1, exp(H - H'))``, ``H = ||m||^2 / 2 M^2 - log p``; a
      rejected move turns the momentum round.

    Each chain decides for itself. ``mala`` and ``hmc`` keep the target exactly for any ``h``, and
    need a model that knows its log density, and a guide without rules. No corrector follows the
    last step.

    * Order that of ``sampler``. ``steps=0`` is ``sampler``.

    Args:
        chain: ``ula``, ``mala``, ``uhmc`` or ``hmc``.
        steps: Moves at each level, >= 0; 20 (ula, mala) or 10 (hmc) in the paper.
        h: Step size, in units of the variance ``q`` that forward noising adds between the two
            levels (``beta`` of a chain); 0 takes 2 (ula), 0.035 (mala), 0.1 (uhmc, hmc).
        leapfrog: Kicks and drifts in a move of ``uhmc`` and ``hmc``, >= 1.
        damping: Share ``d`` of the momentum that is kept, in [0, 1).
        mass: ``M``, > 0, in the unit of ``h``.
        unit: ``variance``: ``h`` and ``mass`` are multiplied by ``q``; ``absolute``: as given.
        until: Share of the steps after which no chain runs; the paper stops half way.
        sampler: Text of the sampler between the chains.

    Raises:
        ValueError: A parameter is out of range; the model or guide has no log density.

    Source:
        Du et al. (2023), arXiv:2302.11552; acceptance as derived (the released image script
        has another proposal density).
    """

    chain: Literal["ula", "mala", "uhmc", "hmc"] = "ula"
    steps: Annotated[int, Range(0, math.inf, closed="left")] = 10
    h: Annotated[float, Range(0, math.inf, closed="left")] = 0.0
    leapfrog: Annotated[int, Range(1, math.inf, closed="left")] = 3
    damping: Annotated[float, Range(0, 1, closed="left")] = 0.7
    mass: Annotated[float, Range(0, math.inf, closed="neither")] = 1.0
    unit: Literal["variance", "absolute"] = "variance"
    until: Annotated[float, Range(0, 1)] = 1.0
    sampler: str = "ddpm"

    def __post_init__(self) -> None:
        choose("mcmc", "chain", self.chain, CHAINS)
        choose("mcmc", "unit", self.unit, ("variance", "absolute"))
        super().__post_init__()

    @property
    def order(self) -> int:
        """That of the sampler."""
        return self.inner.order

    @property
    def evaluations(self) -> int:
        """Those of the sampler, and those of a chain."""
        moves = self.steps * (self.leapfrog if "hmc" in self.chain else 1)
        return self.inner.evaluations + (moves + (self.chain != "ula") if self.steps else 0)

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        x = self.inner.step(model, x, s, t)
        if t.sigma == 0 or not self.steps or model.step >= self.until * model.steps:
            return x
        unit = added_variance(s, t) if self.unit == "variance" else 1.0
        target = _Target(model, t, (self.h or DEFAULT_H[self.chain]) * unit)
        if "hmc" in self.chain:
            return self._hamiltonian(target, x, self.mass * unit)
        return self._langevin(target, x)

    def _langevin(self, target: "_Target", x: Tensor) -> Tensor:
        h = target.h
        if self.chain == "ula":
            for _ in range(self.steps):
                x = x + h * target.score(x) + math.sqrt(2 * h) * target.model.noise(x)
            return x
        score, log_p = target.score(x), target.log_density(x)
        for _ in range(self.steps):
            moved = x + h * score + math.sqrt(2 * h) * target.model.noise(x)
            there, log_there = target.score(moved), target.log_density(moved)
            back, forth = square(x - moved - h * there), square(moved - x - h * score)
            accept = target.accept(log_there - log_p + (forth - back) / (4 * h), x)
            x, score = moved.where(accept, x), there.where(accept, score)
            log_p = log_there.where(accept.flatten(), log_p)
        return x

    def _hamiltonian(self, target: "_Target", x: Tensor, mass: float) -> Tensor:
        h, d = target.h, self.damping
        corrected = self.chain == "hmc"
        momentum = mass * target.model.noise(x)
        score = target.score(x)
        log_p = target.log_density(x) if corrected else torch.zeros(len(x))
        for _ in range(self.steps):
            momentum = d * momentum + math.sqrt(1 - d**2) * mass * target.model.noise(x)
            moved, speed, there = x, momentum, score
            for _ in range(self.leapfrog):
                speed = speed + h / 2 * there
                moved = moved + h / mass**2 * speed
                there = target.score(moved)
                speed = speed + h / 2 * there
            if not corrected:
                x, momentum, score = moved, speed, there
                continue
            log_there = target.log_density(moved)
            kinetic = (square(momentum) - square(speed)) / (2 * mass**2)
            accept = target.accept(log_there - log_p + kinetic, x)
            x, score = moved.where(accept, x), there.where(accept, score)
            momentum = speed.where(accept, -momentum)
            log_p = log_there.where(accept.flatten(), log_p)
        return x


class _Target:
    """The target of a chain at one level, and its step size."""

    def __init__(self, model: Model, level: Level, h: float) -> None:
        self.model, self.level, self.h = model, level, h

    def score(self, x: Tensor) -> Tensor:
        level = self.level
        return (level.alpha * self.model(x, level).denoise - x) / level.sigma**2

    def log_density(self, x: Tensor) -> Tensor:
        return self.model.log_density(x, self.level)

    def accept(self, log_ratio: Tensor, x: Tensor) -> Tensor:
        """Per sample whether a move is accepted, broadcast against `x`."""
        u = torch.special.ndtr(self.model.noise(log_ratio[:, None])).flatten()
        accepted: Tensor = u.log() < log_ratio
        rate = self.model.carried.get("accepted", torch.zeros_like(log_ratio))
        self.model.carried["accepted"] = rate + accepted
        return accepted.reshape(-1, *[1] * (x.ndim - 1))
