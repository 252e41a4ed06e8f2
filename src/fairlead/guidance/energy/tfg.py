"""TFG: unified training-free guidance."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from fairlead.guidance.algebra import Context, register
from fairlead.guidance.context import Weight
from fairlead.guidance.energy.term import EnergyLike, signal
from fairlead.guidance.energy.training_free import SHAPES, TrainingFree, noise_share, shape_at
from fairlead.parameters import FINITE, Range, choose

Shape = Literal["increase", "decrease", "constant"]


@register("tfg", ids=("S128",), neutral="'measurement', rho=0.0, mu=0.0")
@dataclass(frozen=True)
class TFG(TrainingFree):
    r"""Training-free guidance by a judge of clean samples, at the sample and at its estimate.

    On the variance-preserving path (``A = alpha^2``, ``r = A / A_next``, other schedules are
    rescaled to it), with ``F(z) = log mean_m f(z + std delta_m)`` and ``f = exp(-E)``:

    .. math::
        \Delta_t &= \rho_t \nabla_x F(D(x)), \qquad
        \Delta_0 \gets \Delta_0 + \mu_t \nabla F(D + \Delta_0)
        \;\; (\mathtt{iterations} \text{ times}), \\
        x_\mathrm{next} &= \mathrm{step}(x, D) + \Delta_t / \sqrt{r_t}
        + \sqrt{A_\mathrm{next}} \, \Delta_0 .

    Both are shifts of the ``denoise`` end alone, so every sampler takes them. Recurrence is the
    sampler ``recurrence('ddim(eta=1.0)', times=k)``. ``dps``, ``lgd``, ``mpgd``, ``freedom`` and
    ``ugd`` are corners of it.

    * Cost: 0 NFE; one backward through the network where ``rho`` is not 0, and
      ``samples * max(1, iterations)`` gradients of the energy.
    * Neutral: ``rho = mu = 0``.
    * Defaults by family, ``(rho, mu, gamma)``: CIFAR-10 classes (1, 0.25, 0.001), ImageNet
      classes (2, 0.5, 0.1), Gaussian deblurring (1, 8, 0.01), 4x super-resolution (4, 2, 0.01);
      inverse problems with ``fl.energy.Linear(form="norm")``.

    Args:
        energy: Judges clean samples; a name, an energy or a function.
        rho: Scale of the gradient in the sample, its mean over the steps.
        mu: Step size at the clean estimate, its mean over the steps.
        gamma: Spread of the smoothing draws, >= 0.
        iterations: Steps at the clean estimate, >= 0.
        samples: Smoothing draws, >= 1.
        rho_shape: Course of ``rho``: ``increase`` as ``r_t``, ``decrease`` as ``1 - r_t``, or
            ``constant``.
        mu_shape: Course of ``mu``.
        gamma_shape: ``decrease``, in proportion to the noise level, or ``constant``.
        branch: Condition state whose clean estimate is judged.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(2.0) + fl.TFG("measurement", rho=1.0, mu=0.5))
        "cfg(2.0) + tfg('measurement', rho=1.0, mu=0.5)"

    Source:
        Ye, Lin, Han, Xu, Liu, Liang, Ma, Zou, Ermon (2024), arXiv:2409.15761.
    """

    energy: EnergyLike
    rho: Annotated[float, FINITE] = 0.5
    mu: Annotated[float, FINITE] = 0.25
    gamma: Annotated[float, Range(0, math.inf, closed="left")] = 0.0
    iterations: Annotated[int, Range(0, math.inf, closed="left")] = 4
    samples: Annotated[int, Range(1, math.inf, closed="left")] = 1
    rho_shape: Shape = "increase"
    mu_shape: Shape = "increase"
    gamma_shape: Literal["decrease", "constant"] = "decrease"
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rho_shape", "mu_shape"):
            choose(self.name, name, getattr(self, name), SHAPES)
        choose(self.name, "gamma_shape", self.gamma_shape, SHAPES[1:])
        for name in ("iterations", "samples"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ValueError(
                    f"{self.name}: {name} must be a whole number, got {getattr(self, name)}"
                )

    @property
    def strength(self) -> float:
        return 1.0 if self.rho or (self.mu and self.iterations) else 0.0

    @property
    def inner(self) -> int:
        return self.iterations if self.mu else 0

    def differentiates(self, ctx: Context) -> bool:
        return self.rho != 0

    def variance(self, value: Tensor, ctx: Context) -> Weight:
        # where nothing of the signal is left, neither is anything to guide
        at = signal(ctx.level)
        return self.rho * shape_at(self.rho_shape, ctx) / at if at else 0.0

    def mean(self, ctx: Context) -> float:
        return self.mu * shape_at(self.mu_shape, ctx)

    def spread(self, ctx: Context) -> tuple[float, int]:
        width = noise_share(ctx) if self.gamma_shape == "decrease" else 1.0
        return self.gamma * width, self.samples
