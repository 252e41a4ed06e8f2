"""Guided jump rates: discrete flows and continuous-time diffusion of tokens."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.discrete.process import transition
from fairlead.discrete.sampler import Draws, Factorised, process_of, register
from fairlead.guidance.domains import FLOOR, normalised
from fairlead.guidance.guided import GuidedModel
from fairlead.parameters import Range, choose
from fairlead.schedules import Level


@register("rates", ids=("XD8", "XD9"))
@dataclass(frozen=True)
class Rates(Factorised):
    r"""Jumps at guided rates; a token may jump at any time, and with ``eta`` also back.

    With the flow time ``tau = a_t`` from 0 to 1 a masked token jumps to `k`, and a written one
    back, at the rates

    .. math:: R(m \to k) = \frac{1 + \eta \tau}{1 - \tau} \, p(k \mid z), \qquad
              R(k \to m) = \eta ;

    under uniform noise ``R(z \to k) = p(k | z) / (1 - tau)``. Guides combine the logarithms of
    ``p``: CFG gives ``R_c^w R_u^{1-w}`` (predictor-free guidance), ``dcbg`` multiplies by the
    ratio of a classifier's probabilities (predictor guidance).

    Combined rates do not add up to the total rate of the model: they carry ``Z_w``, and masks
    go faster than they should. ``normalise="column"`` keeps the total and guides the direction
    alone; that is the average over all orders of tokenwise guidance in the limit of many steps.

    * Cost: one evaluation of the guided model a step, and one more if a mask is left at the end.

    Args:
        eta: Rate of masking again, >= 0; 0 for uniform noise.
        normalise: ``none``, or ``column``.
        method: ``exact`` follows the time factor exactly while ``p`` stands still in a step;
            ``euler`` jumps with ``R d tau``, in proportion where that is more than 1.
        guide_remask: Whether a classifier's ratio also multiplies the rate of masking again;
            then the law is not ``p(x | y)`` even at weight 1.
        purity: Whether masked positions that the guided model is surer of go first.

    Raises:
        ValueError: A parameter is out of range, or the process has no mask and ``eta > 0``.

    Source:
        Nisonoff et al. (2024), arXiv:2406.01572; ``column``: Rojas et al. (2025),
        arXiv:2507.08965.
    """

    spaces: ClassVar[tuple[str, ...]] = ("rates",)

    eta: Annotated[float, Range(0, math.inf, closed="left")] = 0.0
    normalise: Literal["none", "column"] = "none"
    method: Literal["exact", "euler"] = "exact"
    guide_remask: bool = False
    purity: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "normalise", self.normalise, ("none", "column"))
        choose(self.name, "method", self.method, ("exact", "euler"))

    def check(self, model: GuidedModel) -> None:
        if process_of(model).mask is None and (self.eta or self.purity):
            raise ValueError(f"{self}: eta and purity need a process with masks")

    def log_probs(self, model: GuidedModel, z: Tensor, s: Level, t: Level) -> Tensor:
        process = process_of(model)
        raw = model(z, transition(s, t)).denoise
        mask = process.mask
        forward = raw if mask is None else raw[..., :mask]
        hidden = torch.ones_like(z, dtype=torch.bool) if mask is None else z == mask
        if self.normalise == "column":
            forward = normalised(torch.where(hidden[..., None], forward, 0.0), self.name)
        weights = torch.where(hidden[..., None], forward.exp(), 0.0)
        if self.purity:
            best = forward.amax(-1).masked_fill(~hidden, -torch.inf)
            share = torch.softmax(best, -1) * hidden.sum(-1, keepdim=True)
            weights = weights * torch.nan_to_num(share)[..., None]
        seen = z if mask is None else None
        chances = _jumps(weights, self._hazard(s, t), self.method, seen)
        if mask is not None:
            back = self._back(raw[..., mask], s, t)
            chances = torch.cat([chances, torch.where(hidden, 0.0, back)[..., None]], -1)
        stay = (1 - chances.sum(-1, keepdim=True)).clamp(min=0)
        chances = chances.scatter_add(-1, z[..., None], stay)
        chances = chances / chances.sum(-1, keepdim=True)
        return chances.clamp(min=1e-300).log().masked_fill(chances <= 1e-300, FLOOR)

    def _hazard(self, s: Level, t: Level) -> float:
        """The time factor of a jump over the step: integrated, or of its beginning."""
        step = t.alpha - s.alpha
        if self.method == "euler":
            return (1 + self.eta * s.alpha) / (1 - s.alpha) * step
        if t.alpha >= 1:
            return math.inf
        return (1 + self.eta) * math.log((1 - s.alpha) / (1 - t.alpha)) - self.eta * step

    def _back(self, log_ratio: Tensor, s: Level, t: Level) -> Tensor:
        rate = log_ratio.clamp(max=80).exp() if self.guide_remask else torch.ones_like(log_ratio)
        step = self.eta * (t.alpha - s.alpha) * rate
        return step.clamp(max=1) if self.method == "euler" else -torch.expm1(-step)

    def finish(self, model: GuidedModel, z: Tensor, t: Level, draws: Draws) -> Tensor:
        mask = process_of(model).mask
        if mask is None or not bool((z == mask).any()):
            return z
        # the release takes the guided answer, but not a classifier's
        own = any(getattr(n, "gradient", False) for n in model.guide.nodes())
        raw = model(z, transition(t, t), gain=0.0 if own else 1.0).denoise
        return torch.where(z == mask, raw[..., :mask].argmax(-1), z)


def _jumps(weights: Tensor, hazard: float, method: str, z: Tensor | None) -> Tensor:
    """Chances of each jump, `(B, L, K)`, from rates without the time factor.

    With `z` the rates are those of any token, itself included: what is drawn then stays.
    """
    total = weights.sum(-1, keepdim=True)
    if method == "euler":
        weights = weights.scatter(-1, z[..., None], 0.0) if z is not None else weights
        chance = (weights * hazard).clamp(max=1)
        return chance / chance.sum(-1, keepdim=True).clamp(min=1)
    leaves = torch.ones_like(total) if math.isinf(hazard) else -torch.expm1(-hazard * total)
    leaves = torch.where(total > 0, leaves, 0.0)
    return weights / total.clamp(min=1e-300) * leaves
