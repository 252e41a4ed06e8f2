"""The sampling of improved VQ-Diffusion: truncation, few tokens an evaluation, purity."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.discrete.process import Process
from fairlead.discrete.sampler import Draws, TokenSampler, guided, process_of, register
from fairlead.discrete.unmask import masked, only
from fairlead.guidance.domains import FLOOR, normalised
from fairlead.guidance.guided import GuidedModel
from fairlead.parameters import Range, choose
from fairlead.schedules import Level


@register("vq", ids=("S044",))
@dataclass(frozen=True)
class VQ(TokenSampler):
    r"""Draws fewer tokens in each evaluation, so that those drawn together know of each other.

    The guided prediction ``p`` of the clean tokens is truncated first, then

    * ``all``: every token is drawn from the mixture posterior of the process;
    * ``uniform``: in each step but the last, masked positions are picked at random, ``per`` at a
      time, and written from ``p``, until the step's share of the sequence is written; nothing is
      noised again;
    * ``purity``: as ``uniform``, but position `l` is picked in proportion to its purity
      ``max_k p_l(k)``, and written from ``p^{1 + r s_l}``, with ``s_l`` the purity in units of
      the largest.

    The last step is ``all`` in every case. A step's share is the difference of
    ``floor(L i / (T - 1))``, or that of the released tables.

    With ``stride = n >= 2`` (fast inference) only every `n`-th of the ``steps`` levels is visited,
    and the cleanest. ``released`` then takes the posterior of one step of the schedule, the one
    that ends at the next visited level, as if the tokens had come that far already: fewer masks
    are written than a step from the level they are at would write, and what is left is drawn at
    once in the last evaluation. ``exact`` takes the posterior of the whole way.

    * Cost: one evaluation of the guided model for every ``per`` tokens; with a stride one for
      every visited level, ``ceil((T - 1) / n) + 1``.
    * ``r=0`` sharpens nothing; ``truncation=1`` leaves every token; ``stride=1`` skips nothing.

    Args:
        prior: ``all``, ``uniform`` or ``purity``.
        per: Most tokens written from one evaluation, >= 1; a rate in the paper, of ``floor(L/T)``.
        sharpen: ``r`` of ``purity``, >= 0.
        truncation: Keeps the likeliest tokens up to the one whose predecessors reach this share;
            in (0, 1].
        leftover: Whether a single token that would be left over is written with the last ones.
        plan: Shares: ``even``, or ``released``, which knows 1024 tokens in 10, 25, 50 or 100
            steps.
        stride: ``n``, >= 1; beyond 1 for ``all`` alone.
        skip: The posterior under a stride, ``released`` or ``exact``.

    Raises:
        ValueError: A parameter is out of range; a stride with another prior; the process has no
            masks; there is no released plan for this length or number of steps.

    Source:
        Tang et al. (2022), arXiv:2205.16007; steps as in the released code.
    """

    spaces: ClassVar[tuple[str, ...]] = ("clean",)

    prior: Literal["all", "uniform", "purity"] = "uniform"
    per: Annotated[int, Range(1, math.inf, closed="left")] = 1
    sharpen: Annotated[float, Range(0, math.inf, closed="left")] = 1.0
    truncation: Annotated[float, Range(0, 1, closed="right")] = 1.0
    leftover: bool = True
    plan: Literal["even", "released"] = "even"
    stride: Annotated[int, Range(1, math.inf, closed="left")] = 1
    skip: Literal["released", "exact"] = "released"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "prior", self.prior, ("all", "uniform", "purity"))
        choose(self.name, "plan", self.plan, ("even", "released"))
        choose(self.name, "skip", self.skip, ("released", "exact"))
        if self.stride > 1 and self.prior != "all":
            raise ValueError(
                f"{self.name}: stride must be 1 with prior={self.prior!r}, got {self.stride}; "
                "prior='all' takes strides"
            )

    def grid(self, process: Process, steps: int) -> list[Level]:
        levels = process.grid(steps)
        if self.stride == 1:
            return levels
        visited = sorted({*range(steps - 1, -1, -self.stride), 0}, reverse=True)
        return [*(levels[steps - 1 - i] for i in visited), levels[-1]]

    def check(self, model: GuidedModel) -> None:
        masked(self.name, model)
        shape = model.evaluator.denoiser.shape
        if shape is not None and self.prior != "all":
            self._plan(shape[0], 0, model.steps)

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        if self.prior == "all" or t.alpha >= 1:
            log_p = truncated(guided(model, z, s, t), self.truncation)
            process = process_of(model)
            s, t = self._walked(model, s, t)
            posterior = process.log_posterior(log_p, z, s, t, "mixture")
            return draws.categorical(normalised(posterior, self.name))
        mask = masked(self.name, model)
        plan = self._plan(z.shape[1], model.step, model.steps)
        left = (z == mask).sum(1).clamp(max=plan)
        while bool((left > 0).any()):
            count = left.clamp(max=self.per)
            if self.leftover:
                count = torch.where(left - count == 1, left, count)
            z = self._write(model, z, s, t, count, draws)
            left = left - count
        return z

    def _plan(self, length: int, i: int, steps: int) -> int:
        """How many tokens are written in step `i`."""
        if self.plan == "even":
            last = max(1, steps - 1)
            return length * (i + 1) // last - length * i // last
        plan = released_plan(steps, self.per)
        if plan is None or length != RELEASED_LENGTH:
            raise ValueError(
                f"{self.name}: plan='released' knows {RELEASED_LENGTH} tokens in 10, 25, 50 or "
                f"100 steps, got {length} in {steps}; plan='even' serves any"
            )
        return plan[i]

    def _walked(self, model: GuidedModel, s: Level, t: Level) -> tuple[Level, Level]:
        """The levels whose posterior is taken in a step from `s` to `t`."""
        one = model.run.levels[-2].t  # of the schedule
        index = round(s.t / one) - 1
        if self.stride == 1 or self.skip == "exact" or index == 0:
            return s, t
        lowered = index - (self.stride - 1 if index >= self.stride else 0)
        level = process_of(model).level
        return level((lowered + 1) * one), level(lowered * one)

    def _write(
        self, model: GuidedModel, z: Tensor, s: Level, t: Level, count: Tensor, draws: Draws
    ) -> Tensor:
        hidden = z == masked(self.name, model)
        log_p = truncated(guided(model, z, s, t), self.truncation)
        weight = torch.zeros(z.shape, dtype=torch.float64, device=z.device)
        if self.prior == "purity":
            weight = log_p.amax(-1)
            ratio = (weight - weight.amax(1, keepdim=True)).exp()
            log_p = log_p * (1 + self.sharpen * ratio)[..., None]
        chosen = draws.subset(weight.masked_fill(~hidden, -torch.inf), count)
        token = draws.categorical(only(normalised(log_p, self.name), chosen))
        return torch.where(chosen, token, z)


RELEASED_LENGTH = 1024


def released_plan(steps: int, per: int) -> list[int] | None:
    """How many of 1024 tokens the released code writes in each step, the noisiest first.

    The last entry is the step that draws all that is left, and never a count.
    """
    if steps == 100 and per <= 10:
        plan = [1, 6] + [11, 10, 10] * 32 + [11, 15]
    else:
        plan = {
            100: [1, 10] + [11, 10, 10] * 32 + [11, 11],
            50: [10] + [21, 20] * 24 + [30],
            25: [21] + [41] * 23 + [60],
            10: [69] + [102] * 8 + [139],
        }.get(steps, [])
    return plan[::-1] or None


def truncated(log_p: Tensor, share: float) -> Tensor:
    """Normalised log-probabilities with the unlikely tokens excluded; not normalised again.

    A token stays if those that are likelier have less than `share` together.
    """
    if share >= 1:
        return log_p
    ordered, index = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, index, before < share)
    return log_p.masked_fill(~kept, FLOOR)
