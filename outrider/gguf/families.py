"""Families of models in GGUF files: settings and tensor names there and in transformers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.errors import UnsupportedModel

_SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
# Settings that follow from others and from the shapes of the weights.
_IMPLIED = ("vocab_size", "attention.value_length", "rope.dimension_count")
_ROPE = "rope.scaling."
_ROPE_TYPES = ("none", "linear", "yarn")

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

# Llama 3.1 and later stretch rotations; a file has the factors instead of the settings.
ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA3_FACTORS = (8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Family:
    """A family in GGUF files and in transformers."""

    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    settings: Mapping[str, str] = field(default_factory=lambda: _SETTINGS)
    interleaves: bool = False
    """Whether the rows of queries and keys are ordered by rotated pairs."""
    norm_offset: float = 0.0
    """The file's weights of norms are larger by this."""


FAMILIES = {
    "llama": Family("llama", interleaves=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", _LAYER | _HEAD_NORMS),
    "gemma3": Family(
        "gemma3_text",
        _LAYER
        | _HEAD_NORMS
        | {
            "ffn_norm": "pre_feedforward_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        _SETTINGS | {"attention.sliding_window": "sliding_window"},
        norm_offset=1.0,
    ),
}


def family_of(architecture: str) -> Family:
    """Raises UnsupportedModel."""
    if architecture not in FAMILIES:
        raise UnsupportedModel(
            f"GGUF files of {architecture!r} are not served, only of {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]


def settings_of(family: Family, architecture: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of transformers' configuration.

    Raises:
        UnsupportedModel: a setting is missing or unknown; the message names it.
    """
    prefix = f"{architecture}."
    given = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    scaling = {k: given.pop(k) for k in list(given) if k.startswith(_ROPE)}
    implied = {k: given.pop(k) for k in _IMPLIED if k in given}
    settings: dict[str, Any] = {"rope_theta": 10_000.0}
    for key, value in given.items():
        if key not in family.settings or isinstance(value, list):
            raise UnsupportedModel(f"its setting {prefix}{key} is not known")
        settings[family.settings[key]] = value
    try:
        num_heads, width = settings["num_attention_heads"], settings["hidden_size"]
        settings.setdefault("num_key_value_heads", num_heads)
        head_dim = settings.setdefault("head_dim", width // num_heads)
        num_layers = settings["num_hidden_layers"]
    except KeyError as error:
        raise UnsupportedModel(f"it does not say its {error.args[0]}") from error
    for key in ("attention.value_length", "rope.dimension_count"):
        if implied.get(key, head_dim) != head_dim:
            raise UnsupportedModel(f"its setting {prefix}{key} is {implied[key]}, not {head_dim}")
    if family.model_type == "gemma3_text":
        # The scale of queries is not a setting: llama.cpp tells the largest model by its layers.
        settings["query_pre_attn_scalar"] = width // num_heads if num_layers == 62 else head_dim
    if rope := _rope_scaling(prefix, scaling):
        settings["rope_scaling"] = rope
    return settings


def _rope_scaling(prefix: str, scaling: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = scaling.get(f"{_ROPE}type", "none")
    known = {"type", "factor", "original_context_length", "finetuned"}
    unknown = scaling.keys() - {_ROPE + name for name in known}
    if kind not in _ROPE_TYPES or unknown:
        name = min(unknown) if unknown else f"{_ROPE}type {kind!r}"
        raise UnsupportedModel(f"its setting {prefix}{name} is not known")
    factor = scaling.get(f"{_ROPE}factor")
    if kind == "none" or not factor:
        return None
    rope = {"rope_type": kind, "factor": factor}
    if kind == "yarn" and f"{_ROPE}original_context_length" in scaling:
        rope["original_max_position_embeddings"] = scaling[f"{_ROPE}original_context_length"]
    return rope


def llama3_scaling(factors: NDArray[np.float32], theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling of rotations, recognised by its factors [head_dim / 2].

    Raises UnsupportedModel for other factors.
    """
    for factor in _LLAMA3_FACTORS:
        expected = _llama3_factors(factor, theta, head_dim)
        if factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-3):
            return {**_LLAMA3, "factor": factor}
    raise UnsupportedModel(f"its factors of rotations ({ROPE_FACTORS}) are not known")


def _llama3_factors(factor: float, theta: float, head_dim: int) -> NDArray[np.float64]:
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)  # type: ignore[no-any-return]


def name_of(tensor: str, family: Family) -> str:
    """transformers' name of a tensor. Raises UnsupportedModel."""
    name, _, suffix = tensor.rpartition(".")
    parts = name.split(".")
    if suffix in ("weight", "bias"):
        if name in _TOP:
            return f"{_TOP[name]}.{suffix}"
        if parts[0] == "blk" and len(parts) == 3 and parts[2] in family.layer:
            return f"model.layers.{parts[1]}.{family.layer[parts[2]]}.{suffix}"
    raise UnsupportedModel(f"its tensor {tensor} is not known")
