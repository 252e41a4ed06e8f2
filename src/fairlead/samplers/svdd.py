"""Soft value-based decoding."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fairlead.parameters import Range, choose
from fairlead.prediction import Prediction
from fairlead.samplers.base import Model, register
from fairlead.samplers.particles import scored
from fairlead.samplers.wrapper import Held, Wrapper
from fairlead.schedules import Level


@register("svdd", ids=("S013",))
@dataclass(frozen=True)
class SVDD(Wrapper):
    r"""Draws several next states for each sample and keeps one, by what it promises to become.

    .. math:: x^1, \dots, x^M \sim p(x_t \mid x_s), \qquad
              P(\text{keep } m) \propto \exp \bigl( r(D(x^m)) / \lambda \bigr)

    The target is ``p(x) exp(r(x) / lambda)``. The reward of the clean estimate stands for the soft
    value (the paper's posterior-mean form): no gradient, no training, but a bias that more
    proposals do not remove: their number brings the samples to a limit at a rate of ``1 / M``, and
    the estimate sets the limit (claim ``svdd-value``). With the soft value itself, ``lambda log
    E[exp(r(x_0) / lambda) | x_t]``, given or learned, the limit is the target in many steps. The
    last step has one outcome and draws nothing.

    * Cost: ``M`` evaluations a step beside those of later stages; the winner's is the next step's.
      With ``value='given'`` the sampler's own and ``M`` of the energy.
    * Order 1. Each sample chooses for itself. ``m = 1``, a constant reward and ``lam = inf`` leave
      the law of the sampler as it is; ``lam = 0`` takes the best.

    Args:
        reward: Name of the reward in ``fl.sample(rewards=...)``; for ``given`` the name of an
            energy, minus the soft value, that judges noisy samples.
        m: Number of proposals, >= 1; 10 in the paper's DNA and RNA runs.
        lam: Temperature, in [0, inf]; 0 (the released code) takes the best proposal.
        value: ``mean`` takes the reward of the clean estimate; ``given`` a soft value.
        sampler: Text of the sampler that proposes; it must add noise.

    Raises:
        ValueError: A parameter is out of range; the reward is missing or returns another shape;
            the proposals of ``sampler`` are all the same.

    Source:
        Li et al. (2024), arXiv:2408.08252.
    """

    reward: str = "reward"
    m: Annotated[int, Range(1, math.inf, closed="left")] = 10
    lam: Annotated[float, Range(0, math.inf)] = 0.0
    value: Literal["mean", "given"] = "mean"
    sampler: str = "ddpm"

    def __post_init__(self) -> None:
        choose("svdd", "value", self.value, ("mean", "given"))
        super().__post_init__()

    def check(self, model: Model) -> None:
        super().check(model)
        if self.value == "mean":
            model.reward(self.reward)
        elif not model.energy(self.reward).noisy:
            raise ValueError(
                f"svdd: the energy {self.reward!r} must judge noisy samples at their level, as "
                "minus the soft value; fl.energy.Function(..., noisy=True)"
            )

    @property
    def evaluations(self) -> int:
        """One a proposal unless their values are given, and those of later stages."""
        return (self.m if self.value == "mean" else 1) * self.inner.evaluations

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        known = model.memory.get("svdd")
        p = known if known is not None else model(x, s)
        held = Held(model, x, s, p)
        if t.sigma == 0:
            return self.inner.step(held, x, s, t)
        proposals: list[Tensor] = []
        predictions: list[Prediction] = []
        values: list[Tensor] = []
        for i in range(self.m):
            y = self.inner.step(held, x, s, t)
            if i and torch.equal(y, proposals[0]):
                raise ValueError(
                    f"svdd: sampler must add noise, but all proposals of {self.inner} are the same;"
                    " take ddpm, ddim(eta=1) or euler_ancestral"
                )
            proposals.append(y)
            if self.value == "given":
                values.append(-model.energy(self.reward)(y, t).detach().double())
            else:
                predictions.append(model(y, t))
                values.append(scored(model, self.reward, predictions[-1].denoise))
        winner = self._draw(model, torch.stack(values))
        rows = torch.arange(len(x), device=x.device)
        if predictions:
            ends = zip(*predictions, strict=True)
            model.memory["svdd"] = Prediction(*(torch.stack(e)[winner, rows] for e in ends))
        return torch.stack(proposals)[winner, rows]

    def _draw(self, model: Model, values: Tensor) -> Tensor:
        """Index `(B,)` of the kept proposal, from the values `(M, B)`."""
        if self.lam == 0 or self.m == 1:
            return values.argmax(0)
        cdf = (values / self.lam).softmax(0).cumsum(0)
        u = torch.special.ndtr(model.noise(values[0][:, None])).flatten()
        index: Tensor = (u > cdf / cdf[-1]).sum(0).clamp(max=self.m - 1)
        return index
