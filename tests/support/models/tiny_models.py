"""Tiny random models of real families, with a tokenizer trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TEXT = """the cat sat on the mat and the dog sat on the log while the rain fell on the roof
a tokenizer splits a text into tokens and a model gives each of them a probability
speculation pays when the draft is right more often than it is slow
do not count your chickens before they hatch, said the farmer to the fox
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

_LLAMA_LIKE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA_LIKE),
    "qwen2": ("Qwen2Config", _LLAMA_LIKE),
    "qwen3": ("Qwen3Config", {**_LLAMA_LIKE, "head_dim": 16}),
    "mistral": ("MistralConfig", {**_LLAMA_LIKE, "sliding_window": 16}),
    # Gemma scales its embeddings up: tied, a random model would repeat its last token for ever.
    "gemma3": (
        "Gemma3TextConfig",
        {**_LLAMA_LIKE, "head_dim": 16, "sliding_window": 16, "tie_word_embeddings": False},
    ),
    "gemma2": ("Gemma2Config", {**_LLAMA_LIKE, "head_dim": 16, "tie_word_embeddings": False}),
    "phi3": ("Phi3Config", _LLAMA_LIKE),
    "olmo2": ("Olmo2Config", _LLAMA_LIKE),
    "phi": ("PhiConfig", {**_LLAMA_LIKE, "num_key_value_heads": 4}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"},
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3},
    ),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 64,
            "init_std": 0.3,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    ),
}

SUPPORTED_FAMILIES = tuple(family for family in _FAMILIES if family not in ("bloom", "gemma2"))


def make_tokenizer(
    folder: Path,
    text: str = TEXT,
    bos: bool = False,
    template: str | None = CHAT_TEMPLATE,
    vocab_size: int = 300,
) -> int:
    """Saves a byte-level BPE tokenizer of at most `vocab_size` tokens; returns how many it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


WORDS = ["<unk>", "▁", "▁the", "▁cat", "▁sat", "s", "t", "▁on"]


def sentencepiece(prepends: bool, num_bytes: int = 256) -> Tokenizer:
    """A tokenizer of words with a leading "▁", and single bytes for what is no word.

    prepends: the first "▁" comes from a normalizer, as in Llama 2's own files; else from the
        pre-tokenizer, and bytes are not decoded.
    """
    tokens = WORDS + [f"<0x{byte:02X}>" for byte in range(num_bytes)]
    vocab = [(token, -1.0) for token in tokens]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=num_bytes == 256))
    if prepends:
        spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(spaces)
        strip = decoders.Strip(content=" ", left=1)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
        tokenizer.decoder = decoders.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def make_model(
    folder: Path, family: str, seed: int = 0, vocab_size: int | None = None, **settings: Any
) -> Path:
    """Saves a model and a tokenizer; `vocab_size` pads the embedding."""
    num_tokens = make_tokenizer(folder)
    class_name, defaults = _FAMILIES[family]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, class_name)(
        vocab_size=vocab_size or num_tokens, **{**defaults, **ids, **settings}
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def model_factory(root: Path) -> Callable[..., Path]:
    """A function that makes each model once: `get("llama", seed=1)`."""
    made: dict[str, Path] = {}

    def get(family: str, **settings: Any) -> Path:
        key = repr((family, sorted(settings.items())))
        if key not in made:
            made[key] = make_model(root / f"model{len(made)}", family, **settings)
        return made[key]

    return get
