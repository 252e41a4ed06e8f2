"""EluCD: guidance by an off-the-shelf classifier, without the network's Jacobian."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from fairlead.guidance.algebra import Context, Gains, Place, Predictions, Scale, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.classifier_guidance import posterior_variance
from fairlead.guidance.energy.term import EnergyLike, GradientTerm
from fairlead.parameters import FINITE, Range, choose


@register("elucd", ids=("S025",), neutral="'classifier', 0.0")
@dataclass(frozen=True)
class EluCD(GradientTerm):
    r"""Shifts the sampler by the gradient of a clean classifier at the clean estimate.

    ``ddpm``, with ``g`` the gradient of the log-probability at ``clip(D, -1, 1)``, ``V_t`` the
    variance of the DDPM posterior, and step ``i`` of ``N``:

    .. math:: x_\mathrm{next} = \mathrm{step}(x, D) + k \, (V_t + \gamma_t) \, g, \qquad
              \gamma_t = \max\bigl(0, \, \gamma \, V \sin(\pi (N - i) / N)\bigr),

    with ``V`` the largest variance so far. ``edm`` moves the sample before the step, by a length
    that does not depend on the classifier's scale (``R`` the root mean square of ``x``, and ``g``
    at ``x / max(1, R)``):

    .. math:: x \gets x + R \, k_i \, g / \mathrm{rms}(g), \qquad
              k_i = k \bigl[ (N + 1 - i) / (N + 1) + a \sin(\pi i / N) \bigr] .

    Smooth the classifier and part its temperatures with ``fl.energy.Classifier(softplus=3,
    marginal=0.5)`` (``ddpm``) or ``(softplus=5, marginal=0)`` (``edm``). The floor of 1e-5 under
    ``k_i`` of the authors' code is left out, so that ``k = 0`` is off.

    * Cost: 0 NFE; one gradient of the classifier.
    * Neutral: ``scale = 0``.
    * Defaults by family: ``ddpm`` 1 with ``gamma`` 0.3; ``edm`` 0.004 with ``bump`` 0.3.

    Args:
        energy: A classifier of clean samples; a name or an energy.
        scale: ``k``, one number or one a sample.
        form: ``ddpm`` or ``edm``.
        gamma: Size of the additional bump (``ddpm``), >= 0.
        bump: ``a``, the bump over the steps (``edm``).
        clip: Bound on the clean estimate shown to the classifier (``ddpm``); ``None`` for data
            that have none.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.0) + fl.EluCD("classifier", 1.0, clip=None))
        "cfg(1.0) + elucd('classifier', clip=None)"

    Source:
        Ma, Hu, Wang, Sun (2023), arXiv:2310.11311.
    """

    energy: EnergyLike
    scale: Scale = 1.0
    form: Literal["ddpm", "edm"] = "ddpm"
    gamma: Annotated[float, Range(0, math.inf, closed="left")] = 0.3
    bump: Annotated[float, FINITE] = 0.3
    clip: Annotated[float | None, Range(0, math.inf, closed="right")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "form", self.form, ("ddpm", "edm"))

    @property
    def moves(self) -> bool:
        """Whether it moves the sample before a step."""
        return self.form == "edm"

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.scale

    def plan(self, ctx: Context, gains: Gains, gain: float, place: Place) -> None:
        super().plan(ctx, gains, gain, place)
        if self.form == "edm" and place in ctx.plan.gradients:
            ctx.plan.moves.append((self, place))

    def move(self, x: Tensor, ctx: Context, evaluator: Any) -> Tensor:
        if self.form != "edm":
            return x
        size = rms(x)
        g = self.log_f(x / size.clamp(min=1), ctx)[1]
        length = rms(g)
        direction = torch.where(length > 0, g / length.clamp(min=torch.finfo(g.dtype).tiny), 0.0)
        i, n = ctx.run.step, ctx.run.steps
        k = (n + 1 - i) / (n + 1) + self.bump * math.sin(math.pi * i / n)
        moved: Tensor = x + ctx.plan.gradients[ctx.place][0] * k * size * direction
        return moved

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        clean = predictions[branch]
        if self.form == "edm":
            return torch.zeros_like(clean)
        seen = clean if self.clip is None else clean.clamp(-self.clip, self.clip)
        g = self.log_f(seen, ctx)[1]
        variance = posterior_variance(ctx.level, ctx.target)
        largest: float = max(variance, ctx.recall(0.0, "largest"))
        ctx.remember(largest, "largest")
        left = ctx.run.steps - ctx.run.step
        bump = max(0.0, self.gamma * largest * math.sin(math.pi * left / ctx.run.steps))
        return (variance + bump) * g / ctx.target.alpha


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, over all dimensions but the first."""
    size: Tensor = x.square().mean(tuple(range(1, x.ndim)), keepdim=True).sqrt()
    return size
