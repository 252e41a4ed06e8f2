"""A small autoregressive language model over characters, and its tokenizer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class CharacterLM(nn.Module):
    """A Llama of `transformers` over characters, whose first token may name a condition.

    `model` is the `LlamaForCausalLM` itself, for everything that takes one.

    Args:
        tokens: Vocabulary size.
        length: Longest sequence.
        pad: Index of the padding token.
        width: Hidden width, a multiple of `heads`.
        depth: Number of layers.
        heads: Attention heads.
        hidden: Hidden width of the perceptrons.
        dropout: Dropout of the attention weights while training.

    Raises:
        ImportError: transformers is not installed.

    Shapes: tokens `(B, L)` to logits `(B, L, tokens)`.
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        pad: int,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 688,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        try:
            from transformers import LlamaConfig, LlamaForCausalLM
        except ImportError:
            raise ImportError(
                'this model needs transformers: pip install "fairlead[transformers]"'
            ) from None

        self.config: dict[str, Any] = {
            "tokens": tokens,
            "length": length,
            "pad": pad,
            "width": width,
            "depth": depth,
            "heads": heads,
            "hidden": hidden,
            "dropout": dropout,
        }
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokens,
                hidden_size=width,
                intermediate_size=hidden,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                max_position_embeddings=length,
                attention_dropout=dropout,
                pad_token_id=pad,
                bos_token_id=None,
                eos_token_id=None,
                tie_word_embeddings=False,
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def character_tokenizer(tokens: Sequence[str], pad: int) -> Any:
    """A fast tokenizer of `transformers` for single characters and the longer tokens among them.

    Args:
        tokens: The vocabulary in order; what is longer than one character is a special token,
            found whole in the text.
        pad: Index of the padding token.

    Returns:
        A `PreTrainedTokenizerFast` that pads on the left.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise ImportError(
            'this model needs transformers: pip install "fairlead[transformers]"'
        ) from None

    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[pad]))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([t for t in tokens if len(t) > 1])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=tokens[pad],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
