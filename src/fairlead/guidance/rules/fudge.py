"""Reweights next tokens by a classifier of what the text would then be."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fairlead.guidance.algebra import FINITE, Context, Predictions, Range, Rule, register
from fairlead.guidance.domains import FLOOR


@register("fudge", ids=("XD5", "S138"), neutral="0.0, top_k=0")
@dataclass(frozen=True)
class Fudge(Rule):
    r"""Adds what a classifier says of the text with each candidate token (FUDGE, CAIF).

    .. math:: \log p(k) = \log p_w(k) + \gamma \log p_\phi(y \mid z_{<i}, k) + \text{const}

    over the ``top_k`` likeliest tokens of the guided model, and of those the ``keep`` best ones;
    nothing outside. Where the model is sure of the next token (``entropy``), and at the tokens
    between (``every``), nothing is classified: `gamma` is 0 there. With the exact
    posterior of a prefix and all tokens, ``gamma = 1`` samples the exact conditional, and any
    ``gamma`` is CFG of the exact model with that scale. A classifier of complete texts is no such
    posterior, and biased on prefixes.

    * Space: log-probabilities. Cost: 0 NFE, ``top_k`` classifications a reweighted token.
    * Neutral: ``gamma = 0`` with ``top_k = 0``. Negative values steer away.
    * CAIF samples at a temperature: ``fl.generate(do_sample=True, temperature=...)``.

    Args:
        gamma: Strength; 1 in FUDGE, up to 30 either way in CAIF.
        top_k: Number of candidates; 0 takes the whole vocabulary.
        classifier: Name among ``fl.generate(rewards=...)``: a function from the tokens generated
            so far and the candidate, `(N, n + 1)` without the prompt, to log-probabilities of the
            wanted class, `(N,)`.
        keep: Number of candidates that remain, those of the largest sum; 0 keeps all; 20 in CAIF.
        entropy: Nats that the entropy of the guided model must exceed for a token of a text to be
            reweighted; 0 reweights always; 2 in CAIF, which was about five times cheaper.
        every: Tokens from one that is reweighted to the next, counted from the first.

    Raises:
        ValueError: A parameter is out of range; there is no classifier of that name; tokens are
            not known, as outside ``fl.generate`` and ``fl.combine(tokens=...)``.

    Example:
        >>> import fairlead as fl
        >>> str(fl.CFG(1.5) | fl.Fudge(1.0, top_k=20))
        'cfg(1.5) | fudge(1.0, top_k=20)'

    Source:
        Yang, Klein (2021), arXiv:2104.05218; Sitdikov et al. (2022), arXiv:2205.07276.
    """

    domains: ClassVar[frozenset[str]] = frozenset({"logprob"})

    alone: ClassVar[bool] = True

    gamma: Annotated[float, FINITE]
    top_k: Annotated[int, Range(0, math.inf, closed="left")] = 100
    classifier: str = "classifier"
    keep: Annotated[int, Range(0, math.inf, closed="left")] = 0
    entropy: Annotated[float, Range(0, math.inf, closed="left")] = 0.0
    every: Annotated[int, Range(1, math.inf, closed="left")] = 1

    @property
    def rewards(self) -> tuple[str, ...]:
        return (self.classifier,)

    def apply(self, update: Tensor, predictions: Predictions, ctx: Context) -> Tensor:
        base = predictions.base
        guided = base + update
        if self.gamma == 0 and self.top_k == 0 and self.keep == 0:
            return update
        size = guided.shape[-1]
        best, candidates = guided.topk(min(self.top_k, size) or size, -1)
        rows = self._rows(guided, ctx)
        if len(rows):
            reweighted = self.gamma * self._classify(candidates, rows, ctx).to(best)
            best = best.index_add(0, rows, reweighted)
        if 0 < self.keep < best.shape[-1]:
            best, kept = best.topk(self.keep, -1)
            candidates = candidates.gather(-1, kept)
        return torch.full_like(guided, FLOOR).scatter(-1, candidates, best) - base

    def _rows(self, guided: Tensor, ctx: Context) -> Tensor:
        """The texts whose next token is reweighted."""
        rows = torch.arange(len(guided), device=guided.device)
        if self.gamma == 0 or (self.every > 1 and ctx.step % self.every):
            return rows[:0]
        if self.entropy == 0:
            return rows
        log_p = guided.log_softmax(-1)
        return rows[-(log_p.exp() * log_p).sum(-1) > self.entropy]

    def _classify(self, candidates: Tensor, chosen: Tensor, ctx: Context) -> Tensor:
        """Log-probabilities of the chosen texts with each of their candidates `(R, k)`."""
        if ctx.tokens is None:
            raise ValueError(
                "fudge: the tokens so far are not known: use fl.generate, or fl.combine(tokens=...)"
            )
        candidates, before = candidates[chosen], ctx.tokens[chosen]
        rows, k = candidates.shape
        before = before.repeat_interleave(k, 0)
        extended = torch.cat([before, candidates.reshape(-1, 1)], 1)
        found = ctx.run.reward(self.name, self.classifier)(extended)
        if not isinstance(found, Tensor) or found.shape != (rows * k,):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"fudge: the classifier {self.classifier!r} must give a tensor of ({rows * k},) "
                f"numbers, one a text, got {got}"
            )
        return found.reshape(rows, k)
