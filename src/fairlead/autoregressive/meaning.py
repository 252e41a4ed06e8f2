"""How far two prompts are apart, by what a language model says of their continuations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairlead.autoregressive.calling import positions
from fairlead.autoregressive.generate import generate
from fairlead.autoregressive.prompts import encode
from fairlead.guidance.recipes import tool

Draw = Callable[[int], Any]
"""Draws that many continuations."""

Score = Callable[[Any], Tensor]
"""Mean log-probability of a token of each continuation, `(n,)`."""


def trajectory_scores(u: tuple[Draw, Score], v: tuple[Draw, Score], n: int = 20) -> Tensor:
    """Scores of `n` continuations of each of two prompts under both, `(2, 2 n)`.

    Args:
        u: Draws continuations, and scores them, under one prompt (or guide, or model).
        v: The same under the other.
        n: Number of continuations of each, at least 1.
    """
    if n < 1:
        raise ValueError(f"trajectory_scores: n must be at least 1, got {n}")
    drawn = [draw(n) for draw, _ in (u, v)]
    return torch.stack([torch.cat([score(texts) for texts in drawn]) for _, score in (u, v)])


def trajectory_distance(scores: Tensor) -> float:
    """Mean absolute difference of the two rows of `trajectory_scores`; 0 for equal prompts."""
    return (scores[0] - scores[1]).abs().mean().item()


def entails(scores: Tensor) -> bool:
    r"""Whether the first prompt entails the second.

    With `m` the smaller of the two scores of each continuation: whether the scores under the second
    prompt are nearer to `m` than those under the first. Equal prompts entail neither.
    """
    smaller = scores.amin(0)
    first, second = ((row - smaller).abs().sum() for row in scores)
    return bool(second < first)


@tool("meaning_distance", ids=("S153",), kind="metric", domains=frozenset({"logprob"}))
@torch.no_grad()
def meaning_distance(
    model: Any,
    tokenizer: Any,
    u: str | list[int] | Tensor,
    v: str | list[int] | Tensor,
    *,
    n: int = 20,
    length: int = 20,
    seed: int = 0,
) -> float:
    r"""Distance of two prompts, by the continuations that a language model gives them.

    .. math:: d(u, v) = \frac{1}{2n} \sum_{s \in S_u \cup S_v}
              \frac{1}{|s|} \big| \log p(s \mid u) - \log p(s \mid v) \big|

    with ``n`` sampled continuations of each. It is symmetric, and 0 for equal prompts. A metric: it
    guides nothing.

    Args:
        model: A decoder-only model of transformers.
        tokenizer: Its tokenizer, or `None` where prompts are token ids.
        u: A prompt.
        v: Another.
        n: Number of continuations of each.
        length: Tokens of a continuation, at most.
        seed: Seed of the continuations.

    Returns:
        A number of nats a token.

    Raises:
        ValueError: ``n`` or ``length`` is below 1, or the model is no decoder.

    Example:
        >>> fl.autoregressive.meaning_distance(model, tokenizer, "yes", "no")  # doctest: +SKIP
        1.7

    Source:
        Liu et al. (2023), arXiv:2310.18348.
    """
    if length < 1:
        raise ValueError(f"meaning_distance: length must be at least 1, got {length}")
    if model.config.is_encoder_decoder:
        raise ValueError("meaning_distance: needs a decoder-only model")
    ends = model.generation_config.eos_token_id
    ends = torch.tensor([-1] if ends is None else ends, device=model.device).reshape(-1)

    def law(prompt: Any) -> tuple[Draw, Score]:
        (row,) = encode("meaning_distance", prompt, tokenizer, model.device)

        def draw(count: int) -> Tensor:
            made = generate(
                model,
                None,
                row[None],
                max_new_tokens=length,
                seed=seed,
                do_sample=True,
                top_k=0,
                num_return_sequences=count,
            )
            return made.sequences[:, len(row) :]

        def score(texts: Tensor) -> Tensor:
            ids = torch.cat([row.expand(len(texts), -1), texts], 1)
            mask = torch.ones_like(ids)
            named = positions(model, mask, 0)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **named).logits
            log_p = logits[:, len(row) - 1 : -1].float().log_softmax(-1)
            found = log_p.gather(2, texts[..., None])[..., 0]
            ended = torch.isin(texts, ends).long()
            counts = (ended.cumsum(1) - ended == 0).float()  # the end token counts
            mean: Tensor = (found * counts).sum(1) / counts.sum(1)
            return mean

        return draw, score

    return trajectory_distance(trajectory_scores(law(u), law(v), n))
