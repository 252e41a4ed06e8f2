"""Text that matches a regular expression: an automaton says which tokens may come next."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairlead.guidance.domains import FLOOR
from fairlead.guidance.recipes import tool

ENDED = -1
"""The state behind the end token."""

END = "\x1f"
"""Stands for the end of the text, as one more character of the expression: one byte, so that no
token is a part of it. Tokens that write it are left out."""

Key = tuple[int, ...]


@tool("grammar", ids=("S281",), kind="constraint", domains=frozenset({"logprob"}))
class Grammar:
    r"""Lets `model.generate` write only what a regular expression matches.

    .. math:: p'(k \mid q) = \frac{p(k) \, [k \in V(q)]}{\sum_{j \in V(q)} p(j)}

    `V(q)` are the tokens along whose characters the automaton of the expression lives on from
    state `q`; the end token is among them where the text so far matches. It stands behind the
    guide: masking each branch first would make guidance subtract infinities. Tokens are masked one
    by one, so the law of whole texts is not the model's law given that the text matches.

    The state is a function of the tokens generated so far, so beams may reorder. Where no allowed
    token has probability (a filter or the guide excluded them) the sequence ends, and `stopped`
    says where. One object serves one call of `generate`.

    Args:
        regex: The expression, as `outlines-core` reads it; no look-around.
        tokenizer: A tokenizer of transformers, or its tokens as text by id.
        eos: The end token; default that of the tokenizer.

    Raises:
        ValueError: The expression cannot be read, or no tokens of the vocabulary write it; there
            is no end token.
        ImportError: outlines-core is not installed.

    Example:
        >>> grammar = Grammar("(ab|c)*", {0: "a", 1: "b", 2: "c"}, eos=3)  # doctest: +SKIP
        >>> model.generate(ids, logits_processor=[grammar])  # doctest: +SKIP

    Source:
        Willard, Louf (2023), arXiv:2307.09702.
    """

    def __init__(
        self, regex: str, tokenizer: Any | Mapping[int, str | bytes], *, eos: int | None = None
    ) -> None:
        from outlines_core import Index, Vocabulary

        eos = getattr(tokenizer, "eos_token_id", None) if eos is None else eos
        if not isinstance(eos, int):
            raise ValueError("grammar: the tokenizer has no end token; give eos=, its id")
        ids_by_text: dict[bytes, list[int]] = {}
        for token, text in _texts(tokenizer).items():
            written = text.encode() if isinstance(text, str) else text
            if written and token != eos and END.encode() not in written:
                ids_by_text.setdefault(written, []).append(token)
        # The automaton of outlines-core 0.2 loses steps out of states where the text may end
        # ("(ab)*" would stop behind "ab"), so the end is a character of the expression: no state
        # before it is final.
        self._end = max([eos, *(i for ids in ids_by_text.values() for i in ids)]) + 1
        vocabulary = Vocabulary(self._end + 1, {**ids_by_text, END.encode(): [self._end]})
        try:
            self.index = Index(f"(?:{regex}){END}", vocabulary)
        except ValueError as error:
            raise ValueError(f"grammar: {regex!r} cannot be met: {error}") from None
        self.regex, self.eos = regex, eos
        self.begin: int | None = None
        self.states: dict[Key, int] = {(): self.index.get_initial_state()}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def allowed(self, state: int) -> list[int]:
        """Tokens that may come next in a state, the end token included."""
        tokens = set(self.index.get_allowed_tokens(state)) - {self._end}
        return sorted(tokens | ({self.eos} if self.complete(state) else set()))

    def complete(self, state: int) -> bool:
        """Whether the text may end in a state."""
        after = self.index.get_next_state(state, self._end)
        # where the expression takes any character, it takes that of the end too
        return after is not None and bool(self.index.is_final_state(after))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities `(R, V)` with the tokens that may not come next at minus infinity.

        Raises:
            ValueError: The object has served another call of `generate`, or the model has no such
                end token.
        """
        if self.eos >= scores.shape[-1]:
            raise ValueError(
                f"grammar: the end token {self.eos} is none of the {scores.shape[-1]} of the model"
            )
        if self.begin is None:
            self.begin, self._length = input_ids.shape[1], input_ids.shape[1] - 1
        if input_ids.shape[1] != self._length + 1:
            raise ValueError("grammar: one Grammar serves one call of generate; make another")
        self._length += 1
        keys = [tuple(row) for row in input_ids[:, self.begin :].tolist()]
        states = {key: self._state(key) for key in set(keys)}
        self.states = states  # of this length alone: longer ones follow from them
        masks = torch.stack([self._mask(states[key], scores) for key in keys])
        kept = scores.log_softmax(-1).masked_fill(masks, -torch.inf)
        # the guide's stand-in for probability 0 is finite
        kept[kept.amax(-1) <= FLOOR / 2, self.eos] = 0.0
        return kept.log_softmax(-1)

    def stopped(self, ids: Tensor) -> str:
        """Where a generated sequence, without its prompt, left off; empty where it matches."""
        state, key = self.index.get_initial_state(), ids.tolist()
        for i, token in enumerate(key):
            if token == self.eos:
                if self.complete(state):
                    return ""
                return f"token {i}: no token that {self.regex!r} allows has probability"
            state = self.index.get_next_state(state, token)
            if state is None:
                return f"token {i}: {token} is not what {self.regex!r} allows"
        if self.complete(state):
            return ""
        return f"token {len(key)}: the length was reached before {self.regex!r} was complete"

    def _state(self, key: Key) -> int:
        """The state behind a sequence, from that behind all but its last token."""
        if not key:
            return self.states[key]
        before = self.states[key[:-1]]
        if before < 0 or key[-1] == self.eos:
            return ENDED
        after = self.index.get_next_state(before, key[-1])
        return ENDED if after is None else int(after)

    def _mask(self, state: int, scores: Tensor) -> Tensor:
        """What may not come next, `(V,)`; made once a state."""
        found = self._masks.get((state, scores.shape[-1]))
        if found is None:
            found = torch.full((scores.shape[-1],), state != ENDED, device=scores.device)
            if state >= 0:  # the tokenizer may have tokens that the model lacks
                found[[t for t in self.allowed(state) if t < len(found)]] = False
            self._masks[state, scores.shape[-1]] = found
        return found


def _texts(tokenizer: Any | Mapping[int, str | bytes]) -> dict[int, str | bytes]:
    """What each token writes: bytes where its bytes are known, else text."""
    if isinstance(tokenizer, Mapping):
        return dict(tokenizer)
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    backend = getattr(tokenizer, "backend_tokenizer", None)
    by_bytes = type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(tokenizer.all_special_ids)
    texts: dict[int, str | bytes] = {}
    for token, i in tokenizer.get_vocab().items():
        if i in special:
            continue
        if by_bytes and all(c in byte_of for c in token):
            texts[i] = bytes(byte_of[c] for c in token)
        elif len(token) == 6 and token.startswith("<0x"):  # a byte of a SentencePiece vocabulary
            texts[i] = bytes([int(token[3:5], 16)])
        else:
            space = " " if token.startswith("▁") else ""  # dropped at the start of a text
            texts[i] = space + tokenizer.convert_tokens_to_string([token]).removeprefix(space or "")
    return texts
