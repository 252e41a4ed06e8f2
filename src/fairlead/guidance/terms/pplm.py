"""Moves what a language model remembers of the text towards an attribute (PPLM)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Predictions, Range, Term, register
from fairlead.guidance.branch import COND, Branch, Point
from fairlead.parameters import choose

TINY = 1e-15
"""Added to the norm of a gradient, which may be 0."""


@dataclass(frozen=True)
class MovedPast(Point):
    """Keys and values of the tokens before, `(R, layers, 2, heads, n, width)`, moved uphill."""

    past: ClassVar[bool] = True

    step: float
    iterations: int
    kl: float
    power: float
    of: str
    reward: str

    def __call__(self, x: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        if ctx.look is None:
            raise ValueError("pplm: the keys and values are not known: use fl.generate")
        reward = ctx.run.reward("pplm", self.reward)
        plain = predictions.values_by_branch[COND]
        moved = torch.zeros_like(x)
        largest: Tensor | None = ctx.run.recall(self, None)
        for _ in range(self.iterations):
            with torch.enable_grad():
                here = moved.detach().requires_grad_()
                loss = self.loss(x + here, plain, ctx.look, reward)
                (g,) = torch.autograd.grad(loss.sum(), here)
            ctx.run.report.backwards += 1
            norms = g.flatten(2).norm(dim=2) + TINY  # (R, layers)
            if self.of == "next" and largest is not None:
                norms = torch.maximum(norms, largest)
            largest = norms
            moved = moved - self.step * g / norms[(..., *[None] * (g.ndim - 2))] ** self.power
        if self.of == "next":
            ctx.run.remember(self, largest)
        return x + moved

    def loss(
        self,
        past: Tensor,
        plain: Tensor,
        look: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]],
        reward: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """What is descended, `(R,)`: the negative reward and the divergence from the model."""
        log_p, hidden = look(past, self.of == "hidden")
        found = reward(log_p if hidden is None else hidden)
        if not isinstance(found, Tensor) or found.shape != log_p.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"pplm: the reward {self.reward!r} must give a tensor of {tuple(log_p.shape[:1])} "
                f"numbers, one a text, got {got}"
            )
        if torch.is_grad_enabled() and not found.requires_grad:
            raise ValueError(f"pplm: the reward {self.reward!r} has no derivative in what it sees")
        return self.kl * (log_p.exp() * (log_p - plain)).sum(-1) - found


@register("pplm", ids=("XD5",), nfe=4, neutral="m=0.0")
@dataclass(frozen=True)
class PPLM(Term):
    r"""Fuses the model with itself after its keys and values climbed towards an attribute.

    With ``H`` the keys and values of the tokens before the last, ``d = 0`` and, ``iterations``
    times, layer by layer,

    .. math::
        g &= \nabla_d \big[ -r(p_{H + d}) + \lambda \, \mathrm{KL}(p_{H + d} \,\|\, p_H) \big],
        \\
        d &\gets d - s \, g / \lVert g \rVert^{\gamma}, \\
        \log p &= (1 - m) \log p_H + m \log p_{H + d} + \text{const} .

    Each token starts at ``d = 0`` again, and what is generated later sees ``H``, not ``H + d``.
    Norms are those of a sequence; over ``of='next'`` the largest that was met so far. A prompt of
    one token has nothing before it to move. The paper samples from the 10 likeliest tokens:
    ``fl.generate(do_sample=True, top_k=10)``.

    * Space: log-probabilities.
    * Cost: ``iterations`` forwards and backwards and one more forward of one token; with
      ``of='hidden'`` ``iterations`` more forwards.
    * Neutral: ``m = 0``; also ``step = 0`` or ``iterations = 0``, at the cost of the forwards.

    Args:
        step: Size ``s`` of a step, 0.02 in the paper; in the units of keys and values, which differ
            between models.
        m: Share of the moved model, 0.9 in released code.
        iterations: Number of steps a token.
        kl: Weight ``lambda`` of the divergence from the model.
        power: Power ``gamma`` of the norm.
        of: What the reward is a function of: ``next``, the log-probabilities of the next token
            `(R, V)` (a bag of words: ``lambda log_p: log_p[:, bag].logsumexp(1)``); or ``hidden``,
            the mean `(R, H)` of the last layer's states of all tokens and of the expected next one
            (a head: its ``log_softmax`` at the attribute).
        reward: Name among ``fl.generate(rewards=...)``: a differentiable function that gives
            log-probabilities of the attribute, `(R,)`.

    Raises:
        ValueError: A parameter is out of range; there is no reward of that name; the model is no
            decoder with a growing cache, as outside ``fl.generate``.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.5) + fl.PPLM(0.05, of="hidden"))
        "cfg(1.5) + pplm(step=0.05, of='hidden')"

    Source:
        Dathathri et al. (2019), arXiv:1912.02164; steps and constants as in their code.
    """

    domains: ClassVar[frozenset[str]] = frozenset({"logprob"})

    step: Annotated[float, FINITE] = 0.02
    m: Annotated[float, Range(0, 1)] = 0.9
    iterations: Annotated[int, Range(0, math.inf, closed="left")] = 3
    kl: Annotated[float, Range(0, math.inf, closed="left")] = 0.01
    power: Annotated[float, Range(0, math.inf, closed="left")] = 1.5
    of: Literal["next", "hidden"] = "next"
    reward: str = "attribute"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("pplm", "of", self.of, ("next", "hidden"))

    @property
    def rewards(self) -> tuple[str, ...]:
        return (self.reward,)

    @cached_property
    def strength(self) -> float:
        return self.m

    @cached_property
    def positive(self) -> Branch:
        point = MovedPast(self.step, self.iterations, self.kl, self.power, self.of, self.reward)
        return Branch("pplm", point=point, needs=(COND,))

    @property
    def negative(self) -> Branch:
        return COND
