"""A logits processor, for people who call `model.generate` themselves."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairlead.autoregressive.calling import positions
from fairlead.autoregressive.prompts import Prompts, encode, padded
from fairlead.autoregressive.session import Session
from fairlead.guidance.algebra import Guide
from fairlead.guidance.branch import COND, Branch
from fairlead.guidance.context import Run
from fairlead.guidance.spec import guide as parse


class GuidanceProcessor:
    """Guides the scores of `model.generate(logits_processor=[...])`, first in the chain.

    The conditional scores are the ones that it is given; every other branch is one forward of its
    whole context a token, without a cache, so that beams may reorder at will: `fl.generate` is
    faster. One processor serves one call of `generate`.

    Args:
        model: The model that generates.
        guide: A guide that serves `logprob`, or its text.
        prompts: The prompts as `generate` is given them, left-padded.
        mask: Their attention mask; default: all are tokens.
        tokenizer: For texts among the states.
        negative: As in `fl.generate`.
        states: As in `fl.generate`.
        models: As in `fl.generate`.
        steps: Number of tokens, for schedules.

    Raises:
        ValueError: As `fl.generate`.
    """

    def __init__(
        self,
        model: Any,
        guide: Guide | str,
        prompts: Tensor,
        *,
        mask: Tensor | None = None,
        tokenizer: Any = None,
        negative: Prompts | None = None,
        states: Mapping[str, Prompts] | None = None,
        models: Mapping[str, Any] | None = None,
        steps: int = 64,
    ) -> None:
        mask = torch.ones_like(prompts) if mask is None else mask
        own = [row[keep.bool()] for row, keep in zip(prompts, mask, strict=True)]
        given = {**(states or {}), **({} if negative is None else {"null": negative})}
        rows = {
            k: encode("GuidanceProcessor", p, tokenizer, prompts.device) for k, p in given.items()
        }
        rows |= {"cond": own}
        rows.setdefault("null", [row[-1:] for row in own])
        encoded = padded(rows, 0, left=True)
        run = Run(steps=steps, check=False, record=False)
        self.session = Session(model, parse(guide), encoded, models or {}, run)
        self.prompt_length = prompts.shape[1]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided, normalised log-probabilities `(R, V)`."""
        session = self.session
        session.run.advance()
        session.repeat = len(input_ids) // session.size
        tail = input_ids[:, self.prompt_length :]
        ids = torch.cat([session.expand(session.prompts["cond"].ids), tail], 1)
        values: dict[Branch, Tensor] = {COND: scores.float().log_softmax(-1)}
        session.run.report.count(len(scores), None)
        for name, model in session.models.items():
            session.active[name] = [b for b in session.active[name] if b != COND]
            if session.active[name]:
                stacked, mask = session.stack(name, ids)
                out = model(input_ids=stacked, attention_mask=mask, **positions(model, mask, 0))
                values |= session.split(name, out.logits)
        return session.combine(values, tail)
