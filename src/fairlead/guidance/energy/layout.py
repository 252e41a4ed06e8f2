"""Layout guidance: the sample is moved until words attend to where they are wanted."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor

from fairlead.attention import Attended, AttentionLayer
from fairlead.denoiser import Denoiser, working_dtype
from fairlead.energy.base import Energy, of
from fairlead.guidance.algebra import (
    Context,
    Difference,
    Gains,
    Place,
    Predictions,
    Range,
    Scale,
    Term,
    register,
)
from fairlead.guidance.branch import COND, Branch, Capture
from fairlead.guidance.context import Weight
from fairlead.guidance.energy.term import EnergyLike, differentiated, measured, place_of


@dataclass(frozen=True)
class TextMaps(Capture):
    """Attention to a text, head by head, `(M, frames, heads, h, w, tokens)`."""

    patterns: str | tuple[str, ...]

    def layers(self, denoiser: Denoiser) -> list[AttentionLayer]:
        return denoiser.match_attention("layout", self.patterns, ("cross",))

    def __call__(self, call: Attended) -> Tensor | None:
        if call.index:  # an image prompt, which an adapter adds
            return None
        logits = call.logits()
        # small probabilities, which half precision would round to 0, are to be told apart
        p = logits.to(working_dtype(logits)).softmax(-1)
        grid = (1,) * (3 - len(call.grid)) + call.grid
        return p.reshape(len(p), p.shape[1], *grid, p.shape[-1]).transpose(1, 2)


@register("layout", ids=("S132",), neutral="'boxes', 0.0")
@dataclass(frozen=True)
class Layout(Term):
    r"""Moves the sample before a step, down the gradient of an energy of attention maps.

    Before each of the first ``steps`` steps, at most ``iterations`` times, and for each sample
    while its energy is above ``threshold``, the branch is evaluated at ``x`` and

    .. math:: x \gets x - k \, \sigma_t \, \nabla_x E\bigl(\mathrm{attention}(x, t, c)\bigr)

    on the variance-preserving path; what stands beside it then guides the step as always. The
    energy that is compared is the one found last, also of the step before; before the first it
    is infinite. Multistep samplers keep predictions made before the sample was moved.

    * Cost: up to ``iterations`` NFE in each of the first ``steps`` steps, each with a backward
      through the network; attention matrices of the layers. Each counts for the whole batch.
    * Neutral: ``scale = 0``, ``steps = 0``, or ``threshold = inf``.
    * Defaults by family: ModelScope videos, 40 steps: as below with ``threshold`` 200, which is
      for their heads and 24 frames.

    Args:
        energy: Judges attention maps: ``fl.energy.Boxes``, a ``fl.energy.Function(...,
            attention=True)``, or a name.
        scale: ``k``, one number or one a sample.
        iterations: Most moves before a step, >= 1.
        threshold: Energy at which a sample is left alone.
        steps: Steps that it acts in, from the first, >= 0.
        layers: Cross-attention layers by name, as for ``pag``. The paper takes those of middle
            size.
        by_noise: Whether moves shrink with the noise level ``sigma_t``.
        branch: Condition state whose attention is judged.

    Raises:
        ValueError: A parameter is out of range; the energy judges samples; a pattern names no
            cross-attention layer (lists them).
        FloatingPointError: The energy or its gradient is NaN or infinite.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(7.5) + fl.Layout("boxes", 5.0, iterations=2))
        "cfg(7.5) + layout('boxes', iterations=2)"

    Source:
        Lian, Shi, Yala, Darrell, Li (2023), LLM-grounded Video Diffusion Models,
        arXiv:2309.17444.
    """

    gradient: ClassVar[bool] = True
    moves: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    energy: EnergyLike
    scale: Scale = 5.0
    iterations: Annotated[int, Range(1, math.inf, closed="left")] = 5
    threshold: Annotated[float, Range(-math.inf, math.inf)] = 0.0
    steps: Annotated[int, Range(0, math.inf, closed="left")] = 10
    layers: str | tuple[str, ...] = "**"
    by_noise: bool = True
    branch: str = "cond"

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", of(self.name, self.energy))
        super().__post_init__()
        for name in ("iterations", "steps"):
            value = getattr(self, name)
            if value != int(value):
                raise ValueError(f"layout: {name} must be a whole number, got {value}")

    @property
    def energies(self) -> tuple[str, ...]:
        """Names of the energies that it asks for."""
        return (cast(str, self.energy),)

    def suits(self, energy: Energy) -> None:
        """Refuses an energy that judges samples."""
        if not energy.attention:
            raise ValueError(
                f"layout: the energy {energy.name!r} judges samples; give one of attention maps, "
                "fl.energy.Boxes or fl.energy.Function(..., attention=True)"
            )

    @cached_property
    def read(self) -> Branch:
        """The branch whose attention is judged."""
        return COND if self.branch == "cond" else Branch(self.branch, state=self.branch)

    @cached_property
    def maps(self) -> TextMaps:
        """What is kept of the attention."""
        return TextMaps(self.layers)

    @property
    def captures(self) -> tuple[tuple[Branch, Capture], ...]:
        return ((self.read, self.maps),)

    @property
    def strength(self) -> float | tuple[float, ...]:
        return self.scale

    @property
    def negative(self) -> Branch:
        return self.read

    @property
    def differences(self) -> tuple[Difference, ...]:
        return ()

    @property
    def looks(self) -> tuple[Branch, ...]:
        return () if self.strength == 0.0 else (self.read,)

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        weight = self.weigh(self.strength, ctx, gains, gain)
        if (isinstance(weight, float) and weight == 0.0) or ctx.step >= self.steps:
            return
        ctx.plan.gradients[place] = (weight, self.seen(self.read, ctx, gains))
        ctx.plan.moves.append((self, place))

    def update(
        self, predictions: Predictions, ctx: Context, place: Place
    ) -> tuple[Tensor | None, Weight]:
        return None, 0.0

    def move(self, x: Tensor, ctx: Context, evaluator: Any) -> Tensor:
        weight, branch = ctx.plan.gradients[ctx.place]
        place = ctx.place
        unit = (ctx.alpha**2 + ctx.sigma**2) ** 0.5
        # a gradient in the variance-preserving sample is `unit` one in x, and so is a move
        factor = weight * unit * (ctx.sigma if self.by_noise else unit)
        x = x.to(working_dtype(x))
        found = ctx.recall(x.new_full((len(x),), math.inf))
        for _ in range(self.iterations):
            on = found > self.threshold
            if not bool(on.any()):
                break
            found, gradient = self.judged(x, branch, ctx, evaluator)
            ctx.place = place
            x = x - torch.where(on.reshape(-1, *[1] * (x.ndim - 1)), factor * gradient, 0.0)
        ctx.remember(found)
        return x

    def judged(
        self, x: Tensor, branch: Branch, ctx: Context, evaluator: Any
    ) -> tuple[Tensor, Tensor]:
        """The energy of each sample, `(B,)`, and its gradient in `x`."""
        energy = ctx.run.energy(self.name, self.energies[0])
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            seen = evaluator.read(branch, leaf, (self.maps,), ctx).maps(branch, self.maps)
            maps = {
                name if i == 0 else f"{name}:{i}": call.reshape(len(x), -1, *call.shape[2:])
                for name, calls in (seen or {}).items()
                for i, call in enumerate(calls)
            }
            value = measured(energy, maps, ctx.level, place_of(ctx), len(x))
            gradient = differentiated(energy, value, leaf, ctx)
        ctx.run.report.gradients += 1
        ctx.run.report.backwards += 1
        return value.detach().to(x.dtype), gradient
