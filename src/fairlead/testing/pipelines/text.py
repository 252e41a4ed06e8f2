"""Tokenizers and text encoders made in memory: real classes, one token a character.

What only this package's builders need; the vocabularies hold the printable ASCII characters, so
every English prompt has its own tokens and nothing is read from a disk or a network.
"""

import string
from functools import lru_cache
from typing import Any

CHARACTERS = string.ascii_letters + string.digits + string.punctuation
"""Every character that a token stands for; the space is the first letter's mark or byte."""

TURN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template in the ChatML form."""


def numbered(tokens: list[str]) -> dict[str, int]:
    """A vocabulary: each token and its number, in order, repeats dropped."""
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def byte_level() -> list[str]:
    """What byte-level tokenizers write for each of the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


@lru_cache
def clip_tokenizer() -> Any:
    """A `CLIPTokenizer` of 77 places."""
    from transformers import CLIPTokenizer

    letters = byte_level()
    ends = [letter + "</w>" for letter in letters]
    vocabulary = numbered([*letters, *ends, "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


@lru_cache
def t5_tokenizer() -> Any:
    """A `T5Tokenizer` of 64 places."""
    from transformers import T5Tokenizer

    tokens = ["<pad>", "</s>", "<unk>", "▁", *CHARACTERS]
    return T5Tokenizer(
        vocab=[(token, -2.0 if i > 2 else 0.0) for i, token in enumerate(tokens)],
        extra_ids=0,
        model_max_length=64,
    )


@lru_cache
def qwen_tokenizer() -> Any:
    """A `Qwen2Tokenizer` with a chat template."""
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab=numbered([*special, *byte_level()]),
        merges=[],
        chat_template=TURN,
        additional_special_tokens=special[1:],
    )


@lru_cache
def gemma_tokenizer() -> Any:
    """A `GemmaTokenizer`."""
    from transformers import GemmaTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *CHARACTERS]
    return GemmaTokenizer(vocab=numbered(tokens), merges=[])


@lru_cache
def llama_tokenizer() -> Any:
    """A `LlamaTokenizer` with a padding token."""
    from transformers import LlamaTokenizer

    tokens = ["<unk>", "<s>", "</s>", "<pad>", "▁", "\n", *CHARACTERS]
    return LlamaTokenizer(vocab=numbered(tokens), merges=[], pad_token="<pad>")


@lru_cache
def roberta_tokenizer() -> Any:
    """A `RobertaTokenizer` of 77 places."""
    from transformers import RobertaTokenizer

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *byte_level()]
    return RobertaTokenizer(vocab=numbered(tokens), merges=[], model_max_length=77)


def clip_config(width: int) -> Any:
    """Sizes of a CLIP text encoder."""
    from transformers import CLIPTextConfig

    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_hidden_layers=2,
    )


def clip(width: int = 16) -> Any:
    """A `CLIPTextModel`."""
    from transformers import CLIPTextModel

    return CLIPTextModel(clip_config(width))


def projected_clip(width: int = 16) -> Any:
    """A `CLIPTextModelWithProjection`."""
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(clip_config(width))


def t5(width: int = 16) -> Any:
    """A `T5EncoderModel`."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer()),
            d_model=width,
            d_ff=2 * width,
            d_kv=8,
            num_heads=2,
            num_layers=2,
        )
    )


def decoder_sizes(width: int, tokenizer: Any) -> dict[str, Any]:
    """Sizes that the configurations of Llama, Gemma and Qwen share."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def llama(width: int = 16) -> Any:
    """A `LlamaModel`."""
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(**decoder_sizes(width, llama_tokenizer())))


def gemma(width: int = 16) -> Any:
    """A `Gemma2Model`."""
    from transformers import Gemma2Config, Gemma2Model

    sizes = decoder_sizes(width, gemma_tokenizer())
    return Gemma2Model(Gemma2Config(**sizes, head_dim=width // 2, sliding_window=64))


def qwen3(width: int = 16) -> Any:
    """A `Qwen3Model`."""
    from transformers import Qwen3Config, Qwen3Model

    sizes = decoder_sizes(width, qwen_tokenizer())
    return Qwen3Model(Qwen3Config(**sizes, head_dim=width // 2))


def qwen_vision(width: int = 16) -> Any:
    """A `Qwen2_5_VLForConditionalGeneration`."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**decoder_sizes(width, qwen_tokenizer()), "rope_parameters": rope},
            vision_config={
                "depth": 1,
                "hidden_size": width,
                "intermediate_size": width,
                "num_heads": 2,
                "out_hidden_size": width,
            },
        )
    )
