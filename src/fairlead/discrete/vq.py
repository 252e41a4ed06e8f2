"""The sampling of improved VQ-Diffusion: truncation, few tokens an evaluation, purity."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

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
    ``floor(L i / (T - 1))``.

    * Cost: one evaluation of the guided model for every ``per`` tokens.
    * ``r=0`` sharpens nothing; ``truncation=1`` leaves every token.

    Args:
        prior: ``all``, ``uniform`` or ``purity``.
        per: Most tokens written from one evaluation, >= 1.
        sharpen: ``r`` of ``purity``, >= 0.
        truncation: Keeps the likeliest tokens up to the one whose predecessors reach this share;
            in (0, 1].
        leftover: Whether a single token that would be left over is written with the last ones.

    Raises:
        ValueError: A parameter is out of range, or the process has no masks.

    Source:
        Tang et al. (2022), arXiv:2205.16007; steps as in the released code, whose plans are for
        1024 tokens.
    """

    spaces: ClassVar[tuple[str, ...]] = ("clean",)

    prior: Literal["all", "uniform", "purity"] = "uniform"
    per: Annotated[int, Range(1, math.inf, closed="left")] = 1
    sharpen: Annotated[float, Range(0, math.inf, closed="left")] = 1.0
    truncation: Annotated[float, Range(0, 1, closed="right")] = 1.0
    leftover: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "prior", self.prior, ("all", "uniform", "purity"))

    def check(self, model: GuidedModel) -> None:
        masked(self.name, model)

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        if self.prior == "all" or t.alpha >= 1:
            log_p = truncated(guided(model, z, s, t), self.truncation)
            process = process_of(model)
            posterior = process.log_posterior(log_p, z, s, t, "mixture")
            return draws.categorical(normalised(posterior, self.name))
        mask = masked(self.name, model)
        length, i, last = z.shape[1], model.step, max(1, model.steps - 1)
        plan = length * (i + 1) // last - length * i // last
        left = (z == mask).sum(1).clamp(max=plan)
        while bool((left > 0).any()):
            count = left.clamp(max=self.per)
            if self.leftover:
                count = torch.where(left - count == 1, left, count)
            z = self._write(model, z, s, t, count, draws)
            left = left - count
        return z

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
