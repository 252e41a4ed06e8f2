"""Writing masked tokens round by round: by confidence, in a fixed order, or at random."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fairlead.discrete.sampler import Draws, TokenSampler, guided, process_of, register
from fairlead.guidance.domains import FLOOR
from fairlead.guidance.guided import GuidedModel
from fairlead.parameters import Range, choose
from fairlead.schedules import Level

SURE = 1e-9
"""Temperature that stands for 0: the surest come first, ties are drawn."""


def masked(owner: str, model: GuidedModel) -> int:
    """The mask of the model's process.

    Raises:
        ValueError: It has none.
    """
    mask = process_of(model).mask
    if mask is None:
        raise ValueError(f"{owner}: needs a process with masks, not {process_of(model).name}")
    return mask


def drawn(log_p: Tensor, temperature: float, draws: Draws) -> Tensor:
    """One token of each row at a temperature."""
    return draws.categorical(torch.log_softmax(log_p / max(temperature, SURE), -1))


def only(log_p: Tensor, chosen: Tensor) -> Tensor:
    """Log-probabilities that leave no choice where nothing is written."""
    certain = torch.full_like(log_p, FLOOR)
    certain[..., 0] = 0.0
    return torch.where(chosen[..., None], log_p, certain)


@register("maskgit", ids=("XD6",))
@dataclass(frozen=True)
class MaskGIT(TokenSampler):
    r"""Draws all masked tokens in every round and keeps the surest.

    Of ``N_0`` masks at the start ``floor(N_0 cos(pi/2 (i + 1) / T))`` are left after round `i`
    of `T`, at least one before the last round and one less than before. Which tokens stay is
    decided by

    .. math:: \log p_w(\text{drawn}) + \tau (1 - (i + 1) / T) \, G, \qquad G \text{ Gumbel,}

    of the guided distribution. Written tokens stay. A rising scale, as in the paper's relatives,
    is a schedule: ``cfg(4) | curve('linear')``.

    * Cost: one evaluation of the guided model a round.

    Args:
        temperature: ``tau``; 0 is the order of confidence alone.
        order: ``confidence``; ``random``; or ``halton``, a fixed low-discrepancy order over a
            square grid of positions, whose counts follow the arccosine.

    Raises:
        ValueError: A parameter is out of range; the process has no masks; ``halton`` on a length
            that is no square.

    Source:
        Chang et al. (2022), arXiv:2202.04200; guided: arXiv:2301.00704; Halton: arXiv:2503.17076.
    """

    spaces: ClassVar[tuple[str, ...]] = ("clean",)

    temperature: Annotated[float, Range(0, math.inf, closed="left")] = 4.5
    order: Literal["confidence", "random", "halton"] = "confidence"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "order", self.order, ("confidence", "random", "halton"))

    def check(self, model: GuidedModel) -> None:
        masked(self.name, model)
        shape = model.evaluator.denoiser.shape
        if self.order == "halton" and shape is not None:
            halton(shape[0])

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        mask, i, rounds = masked(self.name, model), model.step, model.steps
        hidden = z == mask
        count = hidden.sum(1)
        if i == 0:
            model.run.memory["maskgit"] = count
        start = model.run.memory["maskgit"]
        log_p = guided(model, z, s, t)
        token = draws.categorical(only(log_p, hidden))
        if i == rounds - 1:
            return torch.where(hidden, token, z)
        share = (i + 1) / rounds
        if self.order == "halton":
            written = (start * (1 - math.acos(share) / (math.pi / 2))).floor().clamp(min=i + 1)
            left = start - written.long()
        else:
            left = (start * math.cos(math.pi / 2 * share)).floor().long()
        left = torch.minimum(left, count - 1).clamp(min=1)
        keep = (count - left).clamp(min=0)
        if self.order == "confidence":
            sure = log_p.gather(-1, token[..., None])[..., 0]
            weight = sure / max(self.temperature * (1 - share), SURE)
        elif self.order == "halton":
            weight = -halton(z.shape[1]).to(z.device).argsort().double().expand(len(z), -1) / SURE
        else:
            weight = torch.zeros(z.shape, dtype=torch.float64, device=z.device)
        chosen = draws.subset(weight.masked_fill(~hidden, -torch.inf), keep)
        return torch.where(chosen, token, z)


def halton(length: int) -> Tensor:
    """The positions of a square grid in the order of a Halton sequence of bases 2 and 3.

    Raises:
        ValueError: The length is no square.
    """
    side = math.isqrt(length)
    if side * side != length:
        raise ValueError(f"maskgit: order 'halton' needs a square number of tokens, got {length}")
    seen: dict[int, None] = {}
    i = 1
    while len(seen) < length:
        row, column = (int(_radical(i, base) * side) for base in (2, 3))
        seen.setdefault(row * side + column)
        i += 1
    return torch.tensor(list(seen))


def _radical(i: int, base: int) -> float:
    value, scale = 0.0, 1.0
    while i:
        scale /= base
        i, digit = divmod(i, base)
        value += scale * digit
    return value


@register("unmask", ids=("S089",))
@dataclass(frozen=True)
class Unmask(TokenSampler):
    r"""Writes masked tokens as masked language models do, at random or by confidence.

    From `t` to the earlier `s`, ``random`` writes each mask with probability ``1 - s/t``, and
    ``confidence`` the ``floor(n (1 - s/t))`` of `n` masks whose drawn token has the highest
    guided probability, of each sequence on its own; the last step writes all. Tokens are drawn
    from ``p_w^{1/T}``.

    * Cost: one evaluation of the guided model a step.
    * ``random`` at ``temperature=1`` is the sampler ``ancestral`` for masked tokens.

    Args:
        order: ``random`` or ``confidence``.
        temperature: ``T``; 0 takes the likeliest token.

    Raises:
        ValueError: A parameter is out of range, or the process has no masks.

    Source:
        Nie et al. (2024), arXiv:2410.18514.
    """

    spaces: ClassVar[tuple[str, ...]] = ("clean",)

    order: Literal["random", "confidence"] = "random"
    temperature: Annotated[float, Range(0, math.inf, closed="left")] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "order", self.order, ("random", "confidence"))

    def check(self, model: GuidedModel) -> None:
        masked(self.name, model)

    def step(self, model: GuidedModel, z: Tensor, s: Level, t: Level, draws: Draws) -> Tensor:
        hidden = z == masked(self.name, model)
        log_p = guided(model, z, s, t)
        token = drawn(only(log_p, hidden), self.temperature, draws)
        share = 1.0 if t.alpha >= 1 else 1 - t.t / s.t
        if share == 1.0:
            return torch.where(hidden, token, z)
        if self.order == "confidence":
            sure = log_p.gather(-1, token[..., None])[..., 0] / SURE
            count = (hidden.sum(1) * share + 1e-9).floor().long()
            chosen = draws.subset(sure.masked_fill(~hidden, -torch.inf), count)
        else:
            odds = torch.tensor([1 - share, share], dtype=torch.float64, device=z.device).log()
            chosen = draws.categorical(odds.expand(*z.shape, 2)).bool()
        return torch.where(chosen & hidden, token, z)
