"""Predictor-corrector guidance."""

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from fairlead.parameters import FINITE, Range
from fairlead.samplers.base import Model, Sampler, added_variance, register, transfer
from fairlead.schedules import Level


@register("pcg", ids=("S003",))
@dataclass(frozen=True)
class PCG(Sampler):
    r"""A conditional DDIM step, then Langevin steps on the tilted density at the new level.

    With ``q = sigma_s^2 - (alpha_s/alpha_t)^2 sigma_t^2``, which is ``beta`` on a
    variance-preserving chain and the drop of ``sigma^2`` where ``alpha = 1``:

    .. math::
        x &\gets \alpha_t D_c + \sigma_t \epsilon_c, \\
        x &\gets x + \tfrac{q}{2} \, \frac{\alpha_t D_{w'} - x}{\sigma_t^2} + \sqrt{q} \, n
        \qquad \text{(K times)}, \qquad w' = 1 + \mathtt{gain} \, (w - 1) .

    At ``K = 1``, ``w' = 2 w - 1`` it equals CFG at ``w`` under the reverse SDE as the steps shrink;
    as ``K`` grows it samples the tilted densities ``p_t(x)^(1-w') p_t(x|c)^(w')``.

    * Order 1. One conditional and ``K`` guided evaluations a step; no corrector on the last
      step, to ``sigma = 0``.
    * Rules and schedules of the guide act in the corrector; ``langevin=0`` is conditional DDIM.

    Args:
        langevin: Number ``K`` of Langevin steps, >= 0.
        gain: Factor on ``w - 1`` in the corrector.
        max_step: Cap on ``q / sigma_t^2``, > 0: on coarse grids a Langevin step as long as the
            predictor's overshoots at low noise and diverges. The theorem has no cap.

    Raises:
        ValueError: A parameter is out of range.

    Source:
        Bradley, Nakkiran (2024), arXiv:2408.09000; the form for any schedule is ours.
    """

    langevin: Annotated[int, Range(0, math.inf, closed="left")] = 1
    gain: Annotated[float, FINITE] = 2.0
    max_step: Annotated[float, Range(0, math.inf, closed="right")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.langevin != int(self.langevin):
            raise ValueError(f"pcg: langevin must be a whole number, got {self.langevin}")

    @property
    def evaluations(self) -> int:
        """One conditional, `langevin` guided."""
        return 1 + self.langevin

    def step(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """From `x` at level `s` to the less noisy level `t`."""
        x = transfer(x, model(x, s, gain=0.0), s, t)
        if t.sigma == 0:
            return x
        for _ in range(self.langevin):
            x = self.correct(model, x, s, t)
        return x

    def correct(self, model: Model, x: Tensor, s: Level, t: Level) -> Tensor:
        """One Langevin step at `t`, as long as the step from `s` asks for."""
        q = min(added_variance(s, t), self.max_step * t.sigma**2)
        score = (t.alpha * model(x, t, gain=self.gain).denoise - x) / t.sigma**2
        return x + q / 2 * score + math.sqrt(q) * model.noise(x)
