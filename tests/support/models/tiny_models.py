"""Tiny random models of real families, with a tokenizer trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.support.models.tiny_tokenizers import make_tokenizer

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
