"""Soft value-based decoding of tokens."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from torch import Tensor

from fairlead.discrete.sampler import (
    Draws,
    Factorised,
    TokenSampler,
    get,
    guided,
    register,
)
from fairlead.discrete.unmask import masked
from fairlead.guidance.guided import GuidedModel
from fairlead.parameters import Range, choose
from fairlead.schedules import Level


@register("best_of", ids=("S013",))
@dataclass(frozen=True)
class BestOf(TokenSampler):
    r"""Draws several next sequences for each sample and keeps one, by what it promises to become.

    .. math:: z^1, \dots, z^M \sim p(z_t \mid z_s), \qquad
              P(\text{keep } m) \propto \exp(v(z^m) / \lambda)

    The target is ``p(x) exp(r(x) / lambda)``, with ``p`` the law of the sampler inside. With the
    exact soft value ``v`` and many candidates it is met.

    * Cost: one evaluation a step for the candidates, and ``M`` for the value ``mean``.
    * ``m = 1`` and a constant reward leave the law of the sampler as it is.

    Args:
        reward: Name of the reward in ``fl.discrete.sample(rewards=...)``, a function of clean
            tokens; for ``given`` the name of an energy, ``-v``, that judges noisy tokens.
        m: Number of candidates, >= 1.
        lam: Temperature, >= 0; 0 (the released code) takes the best, the first of equals.
        value: ``mean`` takes the reward of the likeliest clean tokens at each mask; ``given`` a
            soft value.
        sampler: Text of the sampler that proposes; it draws every position on its own.
        last: In the last step ``draw`` as in every other; or ``argmax``, the likeliest token at
            each position without a choice, as the released code has it.

    Raises:
        ValueError: A parameter is out of range; the reward is missing or returns another shape;
            the sampler inside does not draw positions on their own.

    Source:
        Li et al. (2024), arXiv:2408.08252.
    """

    reward: str = "reward"
    m: Annotated[int, Range(1, math.inf, closed="left")] = 10
    lam: Annotated[float, Range(0, math.inf, closed="left")] = 0.0
    value: Literal["mean", "given"] = "mean"
    sampler: str = "ancestral"
    last: Literal["draw", "argmax"] = "draw"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "value", self.value, ("mean", "given"))
        choose(self.name, "last", self.last, ("draw", "argmax"))
        if not isinstance(get(self.sampler), Factorised):
            raise ValueError(
                f"{self.name}: sampler must draw every position on its own, got {self.sampler}"
            )

    @property
    def inner(self) -> Factorised:
        """The sampler that proposes."""
        return cast(Factorised, get(self.sampler))

    def domain(self, space: str) -> str:
        return self.inner.domain(space)

    def check(self, model: GuidedModel) -> None:
        if self.value == "mean":
            masked(self.name, model)
            model.reward(self.reward)
        else:
            model.run.energy(self.name, self.reward)
        self.inner.check(model)

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        log_p = self.inner.log_probs(model, z, s, t)
        if self.last == "argmax" and t.alpha >= 1:
            return log_p.argmax(-1)
        rows = log_p[:, None].expand(-1, self.m, -1, -1)
        candidates = draws.categorical(rows)
        if self.m == 1:
            return candidates[:, 0]
        values = torch.stack(
            [self._value(model, candidates[:, i], t) for i in range(self.m)], 1
        ).double()
        if self.lam == 0:
            best = values.argmax(1)
        else:
            best = draws.categorical(torch.log_softmax(values / self.lam, 1))
        return candidates[torch.arange(len(z), device=z.device), best]

    def _value(self, model: GuidedModel, z: Tensor, t: Level) -> Tensor:
        if self.value == "given":
            return -model.run.energy(self.name, self.reward)(z, t)
        mask = masked(self.name, model)
        if bool((z == mask).any()):
            log_p = guided(model, z, t, t)
            z = torch.where(z == mask, log_p.argmax(-1), z)
        value = model.reward(self.reward)(z)
        if tuple(value.shape) != (len(z),):
            raise ValueError(
                f"reward {self.reward!r}: it must return one number a sample, ({len(z)},), "
                f"got {tuple(value.shape)}"
            )
        return value
