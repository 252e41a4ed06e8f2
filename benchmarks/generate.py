"""(h) Time of guided greedy decoding, on a language model of 21 M random parameters.

`python -m benchmarks.generate`: against the `guidance_scale` of transformers, against unguided
decoding of twice the batch, and what a grammar adds, in float32 and in bfloat16. What the network
alone allows is measured beside: one forward of both branches against one of each, for a token and
for the prompts.
"""

import os
from collections.abc import Callable

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from benchmarks.timing import Ratio, ratio
from fairlead.autoregressive import Grammar, generate

WORDS, PROMPT, NEW = 4000, 16, 24
LETTERS = {i: chr(97 + i % 26) + chr(97 + i // 26 % 26) + chr(97 + i // 676) for i in range(WORDS)}


def language(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A decoder of 21 M random parameters, in evaluation mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=9,
        num_attention_heads=6,
        num_key_value_heads=6,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def timed(ours: Callable[[], object], theirs: Callable[[], object]) -> Ratio:
    return ratio(ours, theirs, repeats=7, number=1, warmup=1)


def forward(model: LlamaForCausalLM, ids: torch.Tensor, *, token: bool) -> Callable[[], object]:
    """The forward of prompts, or of one token behind them, with what generation asks of it."""
    mask = torch.ones_like(ids)
    given = {"use_cache": True, "logits_to_keep": 1}
    with torch.inference_mode():
        cache = model(input_ids=ids, attention_mask=mask, cache=DynamicCache(), **given).cache
    longer = torch.cat([mask, mask[:, :1]], 1)

    @torch.inference_mode()
    def call() -> object:
        if not token:
            return model(input_ids=ids, attention_mask=mask, cache=DynamicCache(), **given)
        behind = DynamicCache()
        for i, layer in enumerate(cache.layers):
            behind.update(layer.keys, layer.values, i)
        return model(input_ids=ids[:, -1:], attention_mask=longer, cache=behind, **given)

    return call


def bounds(model: LlamaForCausalLM, batch: int) -> dict[str, Ratio]:
    """The network alone, both branches in one forward against one forward each."""
    ids = torch.randint(2, WORDS, (2 * batch, PROMPT))
    both, one = forward(model, ids, token=True), forward(model, ids[:batch], token=True)
    null = forward(model, ids[batch:, -1:], token=True)
    prompts = forward(model, ids[:batch], token=False)
    short = forward(model, ids[batch:, -1:], token=False)
    padded = forward(model, ids, token=False)
    pairs = {
        f"network, a token, {batch} / two forwards": (both, lambda: (one(), null())),
        f"network, prompts, {batch} / two forwards": (padded, lambda: (prompts(), short())),
    }
    return {k: ratio(a, b, repeats=15, number=3, warmup=2) for k, (a, b) in pairs.items()}


def rows(batches: tuple[int, ...] = (1, 8)) -> dict[str, Ratio]:
    """Times of whole generations of 24 tokens; prompts of equal length, as transformers asks."""
    logging.set_verbosity_error()
    return {
        f"{str(dtype).removeprefix('torch.')}: {name}": row
        for dtype in (torch.float32, torch.bfloat16)
        for name, row in of(language(dtype), batches).items()
    }


def of(model: LlamaForCausalLM, batches: tuple[int, ...]) -> dict[str, Ratio]:
    """The rows of one model."""
    out: dict[str, Ratio] = {}
    options = {"max_new_tokens": NEW, "do_sample": False}
    grammar = Grammar("([a-z]{3})*", LETTERS, eos=0)  # compiled once, as for many texts
    start = dict(grammar.states)
    for batch in batches:
        ids = torch.randint(2, WORDS, (2 * batch, PROMPT))
        once, twice, null = ids[:batch], ids, ids[:batch, -1:]

        def guided(once: torch.Tensor = once) -> object:
            return generate(model, None, once, guide="cfg(1.5)", max_new_tokens=NEW)

        def scaled(once: torch.Tensor = once, null: torch.Tensor = null) -> object:
            return model.generate(once, guidance_scale=1.5, negative_prompt_ids=null, **options)

        def plain(twice: torch.Tensor = twice) -> object:
            return model.generate(twice, attention_mask=torch.ones_like(twice), **options)

        def constrained(once: torch.Tensor = once) -> object:
            grammar.begin, grammar.states = None, dict(start)
            return generate(
                model, None, once, guide="cfg(1.5)", grammar=grammar, max_new_tokens=NEW
            )

        out[f"guided, {batch} / guidance_scale"] = timed(guided, scaled)
        out[f"guided, {batch} / unguided, {2 * batch}"] = timed(guided, plain)
        out[f"guided under a grammar, {batch} / without"] = timed(constrained, guided)
        out |= bounds(model, batch)
    return out


if __name__ == "__main__":
    print("load", os.getloadavg(), "threads", torch.get_num_threads())
    for name, row in rows().items():
        print(f"{name:52s} {row}")
    print("load", os.getloadavg())
