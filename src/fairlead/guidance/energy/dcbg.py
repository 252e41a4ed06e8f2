"""Classifier guidance of tokens, exact and to first order."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.energy.base import Energy, Judge, pick
from fairlead.guidance.algebra import TOKEN_DOMAINS, Context, Predictions, Scale, register
from fairlead.guidance.branch import Branch
from fairlead.guidance.energy.term import EnergyLike, GradientTerm
from fairlead.parameters import choose
from fairlead.schedules import Level

ROWS = 4096
"""Most sequences that a classifier is shown at once."""


@register("dcbg", ids=("S129", "XD8", "S068"), neutral="'classifier', 0.0")
@dataclass(frozen=True)
class DCBG(GradientTerm):
    r"""Multiplies the probability of each token by what a classifier says of that one edit.

    With ``z[l -> k]`` the sequence with token `k` at position `l`, and a classifier of noisy
    sequences,

    .. math:: p(z_t^l = k) \propto p(z_t^l = k \mid z_s) \,
              \bigl[ p(y \mid z_s[l \to k]) / p(y \mid z_s) \bigr]^\gamma .

    ``first`` takes the ratio to first order in the one-hot tokens,
    ``G[l, k] - G[l, z^l]`` with ``G`` the gradient of ``log p(y | z)``: one gradient in place of
    a classification for every edit. They agree where the log-probability is linear in the
    one-hots.

    In the domain ``posterior`` (D-CBG) the ratio acts on the next token, the mask included; in
    ``rates`` (predictor guidance, TAG to first order) on the rates of jumps; in ``logprob`` on the
    clean token. In ``simplex``, where a classifier judges points `x`, the guided probabilities are
    those whose score is the model's plus ``gamma`` times its gradient `g`:
    ``p + gamma x (g - <x, g>) / (al - 1)``; ``rescale`` gives `g` the length of the model's score
    at each position first. With the exact classifier, masked tokens and
    ``gamma = 1`` the unconditional model becomes the conditional one.

    * Cost: 0 NFE of the model; a gradient of the classifier, or one evaluation of it for every
      edit (for every edit of a masked position, where there are masks).
    * Neutral: ``gamma=0``.

    Args:
        energy: A classifier of noisy tokens (``fl.discrete.Classifier``) or another energy that
            takes them; a name, or the energy.
        gamma: Exponent, one number or one a sample.
        order: ``first`` or ``exact``.
        rescale: In ``simplex``, where it acts alone: whether the gradient is as long as the score.

    Raises:
        ValueError: A parameter is out of range; the energy judges clean samples.

    Example:
        >>> import fairlead as fl
        >>> str(fl.DCBG("classifier", 2.0))
        "dcbg('classifier', gamma=2.0)"

    Source:
        Schiff et al. (2024), arXiv:2412.10193; rates: Nisonoff et al. (2024), arXiv:2406.01572;
        simplex: Stark et al. (2024), arXiv:2402.05841.
    """

    wants: ClassVar[str] = "any"
    domains: ClassVar[frozenset[str]] = TOKEN_DOMAINS

    energy: EnergyLike
    gamma: Scale = 1.0
    order: Literal["first", "exact"] = "first"
    rescale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.name, "order", self.order, ("first", "exact"))

    @cached_property
    def strength(self) -> float | tuple[float, ...]:
        return self.gamma

    @property
    def apart(self) -> bool:
        return False

    def suits(self, energy: Energy) -> None:
        if not energy.noisy:
            raise ValueError(
                f"{self.name}: the energy {energy.name!r} judges clean samples; give one that "
                "takes noisy tokens, such as fl.discrete.Classifier"
            )

    def shift(self, branch: Branch, predictions: Predictions, ctx: Context) -> Tensor:
        energy = ctx.run.energy(self.name, self.energies[0])
        process: Any = getattr(ctx.denoiser, "process", None)
        assert ctx.x is not None
        assert process is not None
        base = predictions.base
        if ctx.x.is_floating_point():
            ctx.run.report.gradients += 1
            concentration = float(ctx.level.network_time or 1.0)
            model = base if self.rescale else None
            return on_simplex(energy, ctx.x, ctx.level, concentration, model).to(base)
        with torch.enable_grad() if self.order == "first" else torch.no_grad():
            table = (first_order if self.order == "first" else exact)(
                energy, ctx.x, ctx.level, process.size, process.mask
            )
            if self.order == "exact" and getattr(ctx.denoiser, "space", "") == "rates":
                table = with_masking(table, energy, ctx.x, ctx.level, process.mask)
        if self.order == "first":
            ctx.run.report.gradients += 1
        return table.detach()[..., : base.shape[-1]].to(base)


def with_masking(
    table: Tensor, energy: Energy, z: Tensor, level: Level, mask: int | None
) -> Tensor:
    """A table of ratios with those of masking a token that shows, which rates can ask for."""
    where = torch.zeros_like(z[:0]) if mask is None else (z != mask).nonzero()
    if mask is None or not len(where):
        return table
    row, place = where.T
    edits = z[row].clone()
    edits[torch.arange(len(row)), place] = mask
    before = log_p(energy, z, level, torch.arange(len(z), device=z.device))
    table[row, place, mask] = log_p(energy, edits, level, row) - before[row]
    return table


def log_p(energy: Energy, z: Tensor, level: Level, rows: Tensor) -> Tensor:
    """`log p(y | z)` of sequences that belong to the samples `rows`, in float64."""
    if isinstance(energy, Judge):
        label = energy.label
        one_each = isinstance(label, Tensor) and label.ndim > 0
        chosen = label.to(rows.device)[rows] if one_each else label  # type: ignore[union-attr]
        return pick(energy.name, energy.log_probs(z, level), chosen).double()
    return -energy(z, level).double()


def on_simplex(
    energy: Energy, x: Tensor, level: Level, concentration: float, model: Tensor | None = None
) -> Tensor:
    """The change of probabilities whose score changes by the classifier's gradient.

    With the probabilities of the model the gradient is given the length of their score.
    """
    with torch.enable_grad():
        leaf = x.double().detach().requires_grad_()
        rows = torch.arange(len(x), device=x.device)
        (g,) = torch.autograd.grad(log_p(energy, leaf, level, rows).sum(), leaf)
    factor = max(concentration - 1, 1e-4)
    if model is not None:
        score = factor * model.double() / x.clamp(min=1e-300)
        score, g = (v - v.mean(-1, keepdim=True) for v in (score, g))
        length = g.norm(dim=-1, keepdim=True)
        g = g * torch.where(length > 0, score.norm(dim=-1, keepdim=True) / length, 0.0)
    return x * (g - (x * g).sum(-1, keepdim=True)) / factor


def first_order(energy: Energy, z: Tensor, level: Level, size: int, mask: int | None) -> Tensor:
    """The log ratio of every one-token edit to first order, `(B, L, size)`."""
    one_hot = F.one_hot(z, size).double().requires_grad_()
    value = log_p(energy, one_hot, level, torch.arange(len(z), device=z.device))
    (g,) = torch.autograd.grad(value.sum(), one_hot)
    return g - g.gather(-1, z[..., None])


def exact(energy: Energy, z: Tensor, level: Level, size: int, mask: int | None) -> Tensor:
    """The log ratio of every one-token edit, `(B, L, size)`; 0 where a token cannot change."""
    free = (z == mask) if mask is not None else torch.ones_like(z, dtype=torch.bool)
    where = free.nonzero()
    ratio = torch.zeros(*z.shape, size, dtype=torch.float64, device=z.device)
    samples = torch.arange(len(z), device=z.device)
    before = log_p(energy, z, level, samples)
    tokens = torch.arange(size, device=z.device)
    per = max(1, ROWS // size)
    for first in range(0, len(where), per):
        row, place = where[first : first + per].T
        edits = z[row][:, None].repeat(1, size, 1)
        edits[torch.arange(len(row), device=z.device)[:, None], tokens[None], place[:, None]] = (
            tokens[None]
        )
        after = log_p(energy, edits.flatten(0, 1), level, row.repeat_interleave(size))
        ratio[row, place] = after.reshape(len(row), size) - before[row][:, None]
    return ratio.clamp(max=80)
