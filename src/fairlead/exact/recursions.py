r"""End variances of samplers on a `GaussianPair`: exact scalar recursions, nothing is drawn.

Guidance is linear there, `D_w = b x` and `s_w = -a x`, so a step multiplies `x` by a number and
adds independent noise, and the variance obeys `V <- f^2 V + g^2`. `levels` go from noisy to
clean, as `NoiseSchedule.grid` gives them; `w` is a number, or a function of the level that a
step starts from; `start` is the variance at the first level, by default the true marginal one.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from fairlead.exact.gaussian_pair import GaussianPair
from fairlead.schedules import Level

Weight = float | Callable[[Level], float]


def ddim_variance(
    pair: GaussianPair, w: Weight, levels: Sequence[Level], start: float | None = None
) -> float:
    """After DDIM: `x' = alpha' D + (sigma'/sigma) (x - alpha D)`.

    In variance-exploding noise this is Euler's method in `sigma` on the probability-flow ODE.
    """
    v = _start(pair, levels, start)
    for t, s in pairwise(levels):
        b = _gain(pair, _at(w, t), t)
        v *= (s.alpha * b + s.sigma / t.sigma * (1 - t.alpha * b)) ** 2
    return v


def ddpm_variance(
    pair: GaussianPair, w: Weight, levels: Sequence[Level], start: float | None = None
) -> float:
    """After ancestral sampling, a step drawing from `q(x_s | x_t, x0 = D)`.

    With `r = alpha_t / alpha_s` and `q = sigma_t^2 - r^2 sigma_s^2`: mean
    `(r sigma_s^2 x + alpha_s q D) / sigma_t^2`, variance `q sigma_s^2 / sigma_t^2`.
    """
    v = _start(pair, levels, start)
    for t, s in pairwise(levels):
        ratio = t.alpha / s.alpha
        q = t.sigma**2 - ratio**2 * s.sigma**2
        factor = (ratio * s.sigma**2 + s.alpha * q * _gain(pair, _at(w, t), t)) / t.sigma**2
        v = factor**2 * v + q * s.sigma**2 / t.sigma**2
    return v


def euler_ode_variance(
    pair: GaussianPair, w: Weight, levels: Sequence[Level], start: float | None = None
) -> float:
    """After Euler steps of the probability-flow ODE in `u = sigma^2`: `x += (du/2) s_w(x)`.

    Raises:
        ValueError: A level has `alpha` other than 1.
    """
    v = _start(pair, levels, start)
    for t, s in pairwise(levels):
        v *= (1 - _drop(t, s) / 2 * _slope(pair, _at(w, t), t)) ** 2
    return v


def euler_sde_variance(
    pair: GaussianPair,
    w: Weight,
    levels: Sequence[Level],
    start: float | None = None,
    langevin: int = 0,
) -> float:
    """After Euler steps of the reverse SDE, `x += du s_w(x) + sqrt(du) n`, `u = sigma^2`.

    Args:
        pair: The distribution.
        w: Guidance weight.
        levels: From noisy to clean, `alpha = 1`.
        start: Variance at the first level.
        langevin: Unadjusted Langevin steps at the new level after each step, each
            `x += (du/2) s_w(x) + sqrt(du) n`.

    Raises:
        ValueError: A level has `alpha` other than 1.
    """
    v = _start(pair, levels, start)
    for t, s in pairwise(levels):
        du = _drop(t, s)
        v = (1 - du * _slope(pair, _at(w, t), t)) ** 2 * v + du
        for _ in range(langevin):
            v = (1 - du / 2 * _slope(pair, _at(w, s), s)) ** 2 * v + du
    return v


def t1_levels(steps: int = 1500, top: float = 400.0, low: float = 1e-5) -> list[Level]:
    """`steps` values of `sigma^2` from `top` to `low` in equal ratios, then clean data."""
    ramp = [top * (low / top) ** (i / (steps - 1)) for i in range(steps)]
    return [Level(math.sqrt(u), 1.0, math.sqrt(u)) for u in [*ramp, 0.0]]


def _at(w: Weight, level: Level) -> float:
    return w(level) if callable(w) else w


def _noised(pair: GaussianPair, level: Level) -> tuple[float, float]:
    square, noise = level.alpha**2, level.sigma**2
    return square * pair.variance + noise, square * pair.cond_variance + noise


def _slope(pair: GaussianPair, w: float, level: Level) -> float:
    """`a` in `s_w = -a x`."""
    free, own = _noised(pair, level)
    return (1 - w) / free + w / own


def _gain(pair: GaussianPair, w: float, level: Level) -> float:
    """`b` in `D_w = b x`."""
    free, own = _noised(pair, level)
    return level.alpha * ((1 - w) * pair.variance / free + w * pair.cond_variance / own)


def _start(pair: GaussianPair, levels: Sequence[Level], start: float | None) -> float:
    return _noised(pair, levels[0])[0] if start is None else start


def _drop(t: Level, s: Level) -> float:
    if t.alpha != 1 or s.alpha != 1:
        raise ValueError("euler variances: levels must be variance exploding, with alpha = 1")
    return t.sigma**2 - s.sigma**2
