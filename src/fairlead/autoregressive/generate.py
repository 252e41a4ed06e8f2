"""`fl.generate`: text under a guide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from fairlead.autoregressive.calling import codebooks, decoder, parameters
from fairlead.autoregressive.grammar import Grammar
from fairlead.autoregressive.prompts import Prompts, Zeros, encode, padded
from fairlead.autoregressive.session import Session, guided
from fairlead.guidance.algebra import Guide
from fairlead.guidance.context import Run
from fairlead.guidance.domains import FLOOR
from fairlead.guidance.guided import branches
from fairlead.guidance.report import Report
from fairlead.guidance.spec import guide as parse


@dataclass(frozen=True)
class Generated:
    """Sequences and what they cost.

    Attributes:
        sequences: Token ids `(B * returned, L)`: prompts on the left (not of encoder-decoder
            models), then what was generated, padded on the right. Of models that write sound
            the sound.
        texts: Decoded, special tokens skipped; empty without a tokenizer.
        nfe: Evaluations of each sequence: tokens times branches.
        report: Branches, their provenance and norms at each token.
        guide: The guide.
        stopped: With a grammar, where each sequence left off before it matched; else empty texts.
    """

    sequences: Tensor
    texts: list[str]
    nfe: Tensor
    report: Report
    guide: Guide
    stopped: list[str] = field(default_factory=list)


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    *,
    guide: Guide | str | None = None,
    negative: Prompts | None = None,
    states: Mapping[str, Prompts] | None = None,
    models: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Tensor | Mapping[str, Tensor]] | None = None,
    rewards: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    grammar: str | Grammar | None = None,
    max_new_tokens: int = 64,
    seed: int | None = None,
    record: bool = False,
    **options: Any,
) -> Generated:
    """Generates under a guide with a language model of transformers.

    All branches are rows of one batched forward with one cache, whatever the decoding: greedy,
    sampling, beams, several returned sequences. A branch that no later token wants leaves the
    batch. The guide comes first and its result is normalised; then come the processors of
    ``options`` (penalties, temperature, top-p, a grammar).

    Args:
        model: A decoder-only or encoder-decoder model of transformers.
        tokenizer: Its tokenizer, or `None` where prompts are token ids.
        prompts: The condition: texts or token ids, one or several, of any lengths.
        guide: A guide that serves `logprob`, or its text; `None` is the model itself. Schedules
            run over tokens: progress 0 is the first, 1 the last of `max_new_tokens`.
        negative: Prompts to push away from: what null means, unless the guide asks for a state
            of that name itself. By default null is the last token of each prompt alone.
        states: Further prompts by state name. A state that a guide over several conditions asks
            for goes by the names of those that are there, such as `style` or `style+text`; what
            it calls `none` is null. `Zeros` are zeros behind the encoder.
        models: Further models by name, such as `amateur`, with the same vocabulary.
        inputs: Further inputs of the models by name, such as `pixel_values`, a row a prompt: a
            tensor for all branches, or one for each state or model, by its name; those that are
            not named take that of `cond`.
        rewards: Functions that a guide scores texts with, by name, as `fudge` does.
        grammar: A regular expression that the new text has to match, or a `Grammar`. Where it
            cannot go on, or the length is reached, what there is comes back, and `stopped` says
            where.
        max_new_tokens: Number of tokens, at most.
        seed: Seed of sampling; `None` goes on with torch's.
        record: Whether the report keeps the norm of each term at each token.
        options: As `model.generate` takes them.

    Returns:
        A `Generated` with `.sequences` and `.texts`.

    Raises:
        ValueError: A number is below 1; a prompt has a token that the model lacks; filters left no
            token; a state, a model or the pad token is missing; numbers of prompts or
            vocabularies differ; the guide does not serve `logprob`; the grammar cannot be met; no
            model takes an input.
        TypeError: Prompts are neither texts nor token ids, or the grammar is none.
        FloatingPointError: What is guided is NaN or infinite.

    Example:
        >>> fl.generate(model, tokenizer, "To be, or", guide="cfg(1.5)").texts  # doctest: +SKIP
        ['To be, or not to be']
    """
    guide = parse(guide)
    counts = {k: options.get(k, 1) for k in ("num_beams", "num_return_sequences")}
    for what, count in {"max_new_tokens": max_new_tokens, **counts}.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"generate: {what} must be a whole number of at least 1, got {count}")
    if not isinstance(grammar, (str, Grammar, NoneType)):
        raise TypeError(
            f"generate: grammar must be a regular expression or a Grammar, got {grammar!r}"
        )
    device = model.device
    pad = _pad(model, tokenizer)
    given = {"cond": prompts, **(states or {})}
    if negative is not None:
        asked = {b.state for b in branches(guide)}
        given["negative" if "negative" in asked else "null"] = negative
    zeros = {name: p for name, p in given.items() if isinstance(p, Zeros) and name != "cond"}
    rows = {
        name: encode("generate", p, tokenizer, device)
        for name, p in given.items()
        if name not in zeros
    }
    _check_ids(model, rows)
    rows |= dict.fromkeys(zeros, rows["cond"])
    rows.setdefault("null", [row[-1:] for row in rows["cond"]])
    decoder_only = not model.config.is_encoder_decoder
    states_ = padded(rows, pad, left=decoder_only)
    cond = states_["cond"]
    sound = codebooks(model) > 1
    steps = max_new_tokens + sound  # the delay pattern takes one more
    run = Run(seed or 0, steps=steps, check=False, record=record, rewards=rewards)
    for node in guide.nodes():
        for name in node.rewards:  # named before the first token
            run.reward(node.name, name)
    by_state = {
        name: {
            k: v.to(device)
            for k, v in ({"cond": value} if isinstance(value, Tensor) else value).items()
        }
        for name, value in (inputs or {}).items()
    }
    session = Session(model, guide, states_, models or {}, run, by_state, zeros)
    if isinstance(grammar, str):
        if tokenizer is None:
            raise ValueError("generate: a grammar needs a tokenizer, or a Grammar with its tokens")
        end = getattr(tokenizer, "eos_token_id", None)
        grammar = Grammar(grammar, tokenizer, eos=pad if end is None else end)
    last = [] if grammar is None else [grammar]
    options["logits_processor"] = [*options.get("logits_processor", ()), *last, _require_tokens]
    if grammar is not None:
        options.setdefault("eos_token_id", grammar.eos)
    if seed is not None:
        torch.manual_seed(seed)
    options |= {k: v["cond"] for k, v in by_state.items() if k in parameters(model)}
    if sound:  # of codes, which are not those of the prompts
        pad = decoder(model).pad_token_id
    with guided(session):
        sequences = model.generate(
            input_ids=cond.ids,
            attention_mask=cond.mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            **options,
        )
    sequences = getattr(sequences, "sequences", sequences)
    if decoder_only:  # padding that only other states' prompts asked for
        sequences = sequences[:, cond.ids.shape[1] - max(map(len, rows["cond"])) :]
    stopped = [""] * len(sequences)
    if grammar is not None:
        begin = grammar.begin or 0
        begin -= cond.ids.shape[1] - max(map(len, rows["cond"])) if decoder_only else 0
        stopped = [grammar.stopped(row[begin:]) for row in sequences]
    texts = []
    if tokenizer is not None and not sound:
        texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    nfe = torch.as_tensor(run.report.nfe).expand(len(sequences))
    return Generated(sequences, texts, nfe, run.report, guide, stopped)


def _check_ids(model: Any, rows: Mapping[str, list[Tensor]]) -> None:
    """Refuses token ids that the model has no embedding of."""
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    for name, prompts in rows.items():
        for i, row in enumerate(prompts):
            low, high = int(row.min()), int(row.max())
            if size is not None and not 0 <= low <= high < size:
                raise ValueError(
                    f"generate: prompt {i} of {name!r} has the token {low if low < 0 else high}; "
                    f"the model has 0 to {size - 1}"
                )


def _require_tokens(input_ids: Tensor, scores: Tensor) -> Tensor:
    """Refuses a sequence of which filters left no token, behind all of them."""
    empty = scores.amax(-1) <= FLOOR / 2
    if bool(empty.any()):
        raise ValueError(
            f"generate: no token is left for sequence {int(empty.nonzero()[0])} at token "
            f"{input_ids.shape[1]}: the filters in the options exclude all of them"
        )
    return scores


def _pad(model: Any, tokenizer: Any) -> int:
    for pad in (
        getattr(tokenizer, "pad_token_id", None),
        getattr(model.config, "pad_token_id", None),
        getattr(model.generation_config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
    ):
        if isinstance(pad, int):
            return pad
    raise ValueError(
        "generate: neither the tokenizer nor the model has a pad token: set tokenizer.pad_token or "
        "model.config.pad_token_id"
    )
