r"""DPM-Solver++: exponential integrators of the clean estimate in ``lam = log(alpha/sigma)``.

With ``h = lam_t - lam_s`` the first-order step is ``transfer``; the second-order ones add a
correction, or take the prediction at the middle. In all of them the sample moves to ``denoise``
while noise, midpoints and histories take ``renoise``, as CFG++ asks (arXiv:2406.08070).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from fairlead.parameters import Range, choose
from fairlead.prediction import Prediction
from fairlead.samplers.base import (
    Model,
    Sampler,
    ancestral,
    noise_of,
    register,
    transfer,
)
from fairlead.schedules import Level

FEW_STEPS = 15
"""Below this number of steps `lower_order_final` makes the last step one of first order."""


@register("dpmpp_1s", ids=("XA4",))
@dataclass(frozen=True)
class DPMpp1S(Sampler):
    r"""The first-order step, in its exponential form.

    .. math:: x_t = \frac{\sigma_t}{\sigma_s} x - \alpha_t (e^{-h} - 1) D

    * Order 1, one evaluation a step. Equal to DDIM at ``eta=0`` up to rounding.

    Source:
        Lu et al. (2022), arXiv:2211.01095, eq. 8 with ``k = 1``.
    """

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        p = model(x, s)
        kept = math.exp(s.lam - t.lam)
        return t.sigma / s.sigma * x + t.alpha * (p.denoise - kept * p.renoise)


@register("dpmpp_2s", ids=("XA4", "S002"))
@dataclass(frozen=True)
class DPMpp2S(Sampler):
    r"""Single-step, second order: the step is taken with the prediction at its middle.

    .. math::
        x_m &= \frac{\sigma_m}{\sigma_s} x - \alpha_m (e^{-h/2} - 1) D, \qquad
        \lambda_m = (\lambda_s + \lambda_t) / 2, \\
        x_t &= \frac{\sigma_t}{\sigma_s} x - \alpha_t (e^{-h} - 1) D(x_m, m)

    With ``eta > 0`` the step goes to a lower level and fresh noise brings it back, as in
    ``ddim``. Steps from ``alpha = 0`` or to ``sigma = 0`` are of first order.

    * Order 2 (at ``eta=0``), two evaluations a step, one on first-order steps.

    Args:
        eta: Share of the ancestral noise in [0, 1].

    Raises:
        ValueError: A parameter is out of range.

    Source:
        Lu et al. (2022), arXiv:2211.01095, algorithm 1 with ``r = 1/2``; ancestral form as in
        k-diffusion; two ends: Chung et al. (2024), arXiv:2406.08070.
    """

    order = 2
    evaluations = 2

    eta: Annotated[float, Range(0, 1)] = 0.0

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        down, up = ancestral(s, t, self.eta)
        p = model(x, s)
        if down.sigma > 0 and s.alpha > 0:
            middle = model.schedule.level_at(s.lam + down.lam)
            p = model(transfer(x, Prediction(p.renoise, p.renoise), s, middle), middle)
        x = transfer(x, p, s, down)
        return x + up * model.noise(x) if up else x


@dataclass(frozen=True)
class _Multistep(Sampler):
    """What the two multistep solvers share: the remembered prediction."""

    def _slope(self, model: Model, p: Prediction, s: Level, t: Level, final: bool) -> Tensor | None:
        """`D1 = (m0 - m1) / r0`, or `None` where the step is of first order."""
        last = model.memory.get("dpmpp")
        model.memory["dpmpp"] = (s.lam, p.renoise)
        few = final and model.step == model.steps - 1 and model.steps < FEW_STEPS
        if last is None or few or t.sigma == 0:
            return None
        lam, previous = last
        if math.isinf(lam) or math.isinf(s.lam):  # alpha was 0
            return None
        value = p.renoise if getattr(self, "difference", "") == "generic" else p.denoise
        slope: Tensor = (value - previous) * ((t.lam - s.lam) / (s.lam - lam))
        return slope


@register("dpmpp_2m", ids=("XA4", "S002"))
@dataclass(frozen=True)
class DPMpp2M(_Multistep):
    r"""Multistep, second order: the last prediction gives the slope.

    With ``m0, m1`` the predictions at this step and the one before, ``h0`` the last ``h`` and
    ``D1 = (m0 - m1) h / h0``:

    .. math::
        \text{midpoint:} \quad x_t &= \frac{\sigma_t}{\sigma_s} x
            - \alpha_t (e^{-h} - 1) (m_0 + D_1 / 2), \\
        \text{heun:} \quad x_t &= \frac{\sigma_t}{\sigma_s} x - \alpha_t (e^{-h} - 1) m_0
            + \alpha_t \Bigl(\frac{e^{-h} - 1}{h} + 1\Bigr) D_1 .

    The first step, the one after a cleared memory and the one to ``sigma = 0`` are of first
    order.

    * Order 2, one evaluation a step; keeps one tensor shaped like ``x``.

    Args:
        variant: ``midpoint`` or ``heun``, two formulas of the same order.
        lower_order_final: Whether the last of fewer than 15 steps is of first order.
        difference: With two ends, ``released`` takes ``m0`` of the difference from ``denoise``
            as CFG++'s code does, ``generic`` from ``renoise`` as its paper's formula does.

    Raises:
        ValueError: A parameter has an unknown value.

    Source:
        Lu et al. (2022), arXiv:2211.01095, algorithm 2; two ends: arXiv:2406.08070.
    """

    order = 2

    variant: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    difference: Literal["released", "generic"] = "released"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("dpmpp_2m", "variant", self.variant, ("midpoint", "heun"))
        choose("dpmpp_2m", "difference", self.difference, ("released", "generic"))

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        p = model(x, s)
        slope = self._slope(model, p, s, t, self.lower_order_final)
        x = transfer(x, p, s, t)
        if slope is None:
            return x
        h = t.lam - s.lam
        gain = -math.expm1(-h) / 2 if self.variant == "midpoint" else 1 + math.expm1(-h) / h
        return x + t.alpha * gain * slope


@register("dpmpp_2m_sde", ids=("XA4",))
@dataclass(frozen=True)
class DPMpp2MSDE(_Multistep):
    r"""The multistep solver of the reverse SDE.

    With ``g = (1 + eta) h`` and ``D1`` as in ``dpmpp_2m``:

    .. math::
        x_t = \frac{\sigma_t}{\sigma_s} e^{-\eta h} x + \alpha_t (1 - e^{-g}) m_0
            + \alpha_t c \, D_1 + \sigma_t \sqrt{1 - e^{-2 \eta h}} \, n, \qquad
        c = \begin{cases} (1 - e^{-g}) / 2 & \text{midpoint} \\
                          (e^{-g} - 1) / g + 1 & \text{heun} \end{cases}

    First-order steps are, at ``eta=1``, DDPM's with the small variance. Without the noise it is
    not the ODE solver; ``eta=0`` is.

    * One evaluation a step; keeps one tensor shaped like ``x``.

    Args:
        eta: Noise in [0, 1]: 0 the ODE, 1 the reverse SDE.
        variant: ``midpoint`` or ``heun``, two formulas of the same order.
        lower_order_final: Whether the last of fewer than 15 steps is of first order.

    Raises:
        ValueError: A parameter is out of range or has an unknown value.

    Source:
        Lu et al. (2022), arXiv:2211.01095, section 5 and appendix; ``eta`` as in k-diffusion.
    """

    order = 2

    eta: Annotated[float, Range(0, 1)] = 1.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("dpmpp_2m_sde", "variant", self.variant, ("midpoint", "heun"))

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        p = model(x, s)
        slope = self._slope(model, p, s, t, self.lower_order_final)
        if t.sigma == 0:
            return t.alpha * p.denoise
        h = t.lam - s.lam
        noised = self.eta * h if self.eta else 0.0  # h may be infinite
        mean = t.alpha * p.denoise + t.sigma * math.exp(-noised) * noise_of(x, p.renoise, s)
        if slope is not None:
            g = h + noised
            gain = -math.expm1(-g) / 2 if self.variant == "midpoint" else 1 + math.expm1(-g) / g
            mean = mean + t.alpha * gain * slope
        return mean + t.sigma * math.sqrt(-math.expm1(-2 * noised)) * model.noise(x)
