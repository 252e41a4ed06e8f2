"""Condition-annealed diffusion sampling, and its companion dynamic CFG."""

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor

from fairlead.condition import Condition
from fairlead.denoiser import Denoiser
from fairlead.guidance.algebra import Range, Schedule, register
from fairlead.guidance.branch import Branch, Transform
from fairlead.guidance.context import Weight
from fairlead.parameters import choose

if TYPE_CHECKING:
    from fairlead.guidance.context import Context


def kept(t: float, tau1: float, tau2: float) -> float:
    """The share `g` of the condition at time `t` (1 is noise): 1 up to `tau1`, 0 from `tau2`."""
    if t <= tau1:
        return 1.0
    return 0.0 if t >= tau2 else (tau2 - t) / (tau2 - tau1)


@dataclass(frozen=True)
class Annealed(Transform):
    """Mixes every condition, as an embedding, with normal noise, and restores its statistics."""

    g: float
    s: float
    psi: float
    key: str

    def __call__(self, condition: Condition, denoiser: Denoiser, ctx: "Context") -> Condition:
        embedded = denoiser.embed(condition)
        return embedded.replace(
            **{k: self.mix(v, ctx.normal(v, f"{self.key} {k}")) for k, v in embedded.items()}
        )

    def mix(self, c: Tensor, n: Tensor) -> Tensor:
        """`c` mixed with `n`; mean and standard deviation per sample over all other dimensions."""
        noisy = sqrt(self.g) * c + self.s * sqrt(1 - self.g) * n
        over = tuple(range(1, c.ndim))
        std = noisy.std(over, keepdim=True)
        centred = (noisy - noisy.mean(over, keepdim=True)) / std.where(std > 0, 1.0)
        rescaled = centred * c.std(over, keepdim=True) + c.mean(over, keepdim=True)
        return self.psi * rescaled + (1 - self.psi) * noisy


@register("cads", ids=("S115",), neutral="tau1=1.0, tau2=1.0")
@dataclass(frozen=True)
class CADS(Schedule):
    r"""Noises the condition early in the run, for diversity at high scales.

    With time ``t`` from 1 (noise) to 0, taken as ``1 - i/N``, and fresh ``n ~ N(0, I)`` each step:

    .. math::
        g(t) &= 1 \ (t \le \tau_1), \quad (\tau_2 - t)/(\tau_2 - \tau_1), \quad
                0 \ (t \ge \tau_2), \\
        c' &= \sqrt{g} \, c + s \sqrt{1 - g} \, n, \qquad
        \hat c = \psi \, \mathrm{restat}(c'; c) + (1 - \psi) \, c'

    where ``restat`` restores mean and standard deviation of ``c`` per sample. Every branch before
    it that carries the condition, the base included, sees ``c^``; index conditions are
    noised behind their embedding.

    * Cost: 0 NFE.
    * Neutral: ``tau1 = 1`` keeps the condition throughout.
    * Defaults by family: text-to-image as below with ``w`` about 9; class embeddings
      ``s = 0.05`` to 0.1.

    Args:
        tau1: Time below which the condition is clean.
        tau2: Time above which it is pure noise.
        s: Size of the noise.
        psi: Share of the restored statistics in [0, 1].
        apply_to: ``cond``; or, as some ports do, ``null`` or ``both`` (independent draws).

    Raises:
        ValueError: A parameter is out of range; it stands inside a sum, where it would move the
            base of one summand only; the model does not say which module embeds an index.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(9.0) | fl.CADS(s=0.1))
        'cfg(9.0) | cads(s=0.1)'

    Source:
        Sadat, Buhmann, Bradley, Hilliges, Weber (2023), arXiv:2310.17347.
    """

    tau1: Annotated[float, Range(0, 1)] = 0.6
    tau2: Annotated[float, Range(0, 1)] = 0.9
    s: Annotated[float, Range(0, float("inf"), closed="left")] = 0.25
    psi: Annotated[float, Range(0, 1)] = 1.0
    apply_to: Literal["cond", "null", "both"] = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("cads", "apply_to", self.apply_to, ("cond", "null", "both"))
        _ordered("cads", self.tau1, self.tau2)

    def branch(self, branch: Branch, ctx: "Context") -> Branch:
        g = kept(1 - ctx.fraction, self.tau1, self.tau2)
        state = "null" if branch.state == "null" else "cond"
        if g == 1 or self.apply_to not in (state, "both"):
            return branch
        return branch.transformed(Annealed(g, self.s, self.psi, f"cads {state}"))


@register("dynamic_cfg", ids=("S115",), neutral="tau1=1.0, tau2=1.0")
@dataclass(frozen=True)
class DynamicCFG(Schedule):
    r"""CADS's companion: a clean condition under the weight ``w(t) = g(t) w``.

    ``g`` is as in ``CADS``; where it is 0 the prediction is unconditional.

    * Cost: 0 NFE.
    * Neutral: ``tau1 = 1``.

    Args:
        tau1: Time (1 is noise) below which the weight is whole.
        tau2: Time above which it is 0.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(5.0) | fl.DynamicCFG())
        'cfg(5.0) | dynamic_cfg()'

    Source:
        Sadat, Buhmann, Bradley, Hilliges, Weber (2023), arXiv:2310.17347.
    """

    tau1: Annotated[float, Range(0, 1)] = 0.6
    tau2: Annotated[float, Range(0, 1)] = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _ordered("dynamic_cfg", self.tau1, self.tau2)

    def weight(self, weight: Weight, ctx: "Context") -> Weight:
        return kept(1 - ctx.fraction, self.tau1, self.tau2) * (weight + 1) - 1


def _ordered(owner: str, tau1: float, tau2: float) -> None:
    if tau1 > tau2:
        raise ValueError(f"{owner}: tau1 must be at most tau2 = {tau2}, got {tau1}")
