"""The next token from other keys and values of the tokens before."""

from typing import Any

import torch
from torch import Tensor

from fairlead.autoregressive.calling import cache_name, positions
from fairlead.denoiser import working_dtype


class Past:
    """Keys and values of the tokens before the last, and what the model makes of others there.

    Args:
        model: A decoder-only model of transformers.
        cache: Its cache behind the last token.
        rows: Which rows of the cache these sequences are.
        ids: Their tokens, `(R, L)`.
        mask: Which of them are no padding, `(R, L)`.
        before: Sum `(R, H)` of the last layer's states of the tokens before the last, where hidden
            states are asked for.

    Raises:
        ValueError: There is no cache, or it does not keep all tokens of every layer alike.
    """

    def __init__(
        self,
        model: Any,
        cache: Any,
        rows: slice,
        ids: Tensor,
        mask: Tensor,
        before: Tensor | None,
    ) -> None:
        from transformers.cache_utils import DynamicLayer

        layers = getattr(cache, "layers", [])
        kinds = {type(layer).__name__ for layer in layers}
        if kinds != {DynamicLayer.__name__} or model.config.is_encoder_decoder:
            raise ValueError(
                "generate: the guide moves the keys and values of a decoder whose cache grows and "
                f"keeps every token, got {', '.join(sorted(kinds)) or 'no cache'}: use fl.generate "
                "on a decoder-only model without sliding windows, and leave its cache options out"
            )
        self.kept = [torch.stack([la.keys[rows], la.values[rows]], 1) for la in layers]
        if len({k.shape for k in self.kept}) > 1:
            raise ValueError("generate: the guide needs keys and values of one shape in all layers")
        self.model, self.ids, self.mask, self.before = model, ids, mask, before

    @property
    def moving(self) -> Tensor:
        """What may be moved, `(R, layers, 2, heads, n, width)`; `n = 0` for a single token."""
        return torch.stack(self.kept, 1)[..., :-1, :]

    def look(self, past: Tensor, hidden: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities `(R, V)` of the next token.

        With `hidden` also the mean `(R, H)` of the last layer's states of all tokens and of the
        expected next one, a soft token that follows the text as it was.
        """
        out = self._forward(past.unbind(1), self.mask, hidden, input_ids=self.ids[:, -1:])
        log_p = out.logits[:, -1].to(working_dtype(out.logits)).log_softmax(-1)
        if not hidden:
            return log_p, None
        assert self.before is not None
        table = self.model.get_input_embeddings().weight
        expected = (log_p.exp().to(table.dtype) @ table)[:, None]
        longer = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        ahead = self._forward(self.kept, longer, hidden, inputs_embeds=expected)
        total = self.before + out.hidden_states[-1][:, -1] + ahead.hidden_states[-1][:, -1]
        return log_p, total / longer.sum(1, keepdim=True)

    def _forward(self, layers: Any, mask: Tensor, hidden: bool, **token: Tensor) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for i, layer in enumerate(layers):
            cache.update(layer[:, 0], layer[:, 1], i)
        named = {cache_name(self.model): cache, **positions(self.model, mask, -1)}
        return self.model(
            attention_mask=mask, use_cache=True, output_hidden_states=hidden, **named, **token
        )
