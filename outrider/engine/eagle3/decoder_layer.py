"""The weights of a draft's decoder layers, Llama's or Qwen3's, under the names of checkpoints.

These modules hold weights and compute nothing. transformers' own
would take 90 MB of memory for the code that they import, more than such a draft's weights.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class Norm(nn.Module):
    """The weight of an RMS norm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps


class Attention(nn.Module):
    """The weights of a layer's attention.

    Args:
        input_size: of query, key and value.
    """

    def __init__(self, config: Any, input_size: int) -> None:
        super().__init__()
        self.head_dim = head_dim(config)
        self.scaling = self.head_dim**-0.5
        size = config.num_attention_heads * self.head_dim
        kv_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(input_size, size, config.attention_bias)
        self.k_proj = nn.Linear(input_size, kv_size, config.attention_bias)
        self.v_proj = nn.Linear(input_size, kv_size, config.attention_bias)
        self.o_proj = nn.Linear(size, config.hidden_size, config.attention_bias)
        if config.model_type == "qwen3":
            self.q_norm = Norm(self.head_dim, config.rms_norm_eps)
            self.k_norm = Norm(self.head_dim, config.rms_norm_eps)


class Mlp(nn.Module):
    """The weights of a layer's MLP."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class DecoderLayer(nn.Module):
    """The weights of a layer; the first one also reads the fused hidden states."""

    def __init__(self, config: Any, is_first: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, 2 * size if is_first else size)
        self.mlp = Mlp(config)
        self.input_layernorm = Norm(size, eps)
        self.post_attention_layernorm = Norm(size, eps)
        self.hidden_norm = Norm(size, eps) if is_first else None


def head_dim(config: Any) -> int:
    """The size of an attention head."""
    size: int | None = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


class RotaryFrequencies(NamedTuple):
    """Angles by which one position rotates, [size / 2], and a factor of the rotated numbers."""

    angles: Tensor
    scale: float

    def tables(self, max_length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [max_length, size], for both halves of a head."""
        angles = torch.arange(max_length)[:, None].float() * self.angles
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.scale, angles.sin() * self.scale


def rotary_frequencies(config: Any) -> RotaryFrequencies:
    """The same as in transformers, which has functions for scaled embeddings."""
    parameters = config.rope_parameters
    if parameters["rope_type"] != "default":
        return RotaryFrequencies(*ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config))
    size = head_dim(config)
    powers = torch.arange(0, size, 2, dtype=torch.float) / size
    return RotaryFrequencies(1.0 / parameters["rope_theta"] ** powers, 1.0)
