"""Decoder layers of the Llama family in fewer operations.

A short pass of a small model is made of calls, not of arithmetic: in transformers'
layer, those that are no products take longer than an int8 product. This one
multiplies query, key and value at once, and gate and up; turns query and key at
once; and normalises in one operation. It is the only model code of the engine, and
is compared with transformers' own like all else when a model loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from outrider.engine.attention import slot_attention
from outrider.engine.packed_linear import linear_weight

# Families whose layers are Llama's, the biases of some projections aside.
FAMILIES = ("llama", "qwen2")


class FusedLayer(nn.Module):
    """A LlamaDecoderLayer over the slot cache."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.num_kv_heads = attention.k_proj.out_features // self.head_dim
        self.num_heads = attention.q_proj.out_features // self.head_dim
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o = attention.o_proj
        self.gate_up = _joined([mlp.gate_proj, mlp.up_proj])
        self.down = mlp.down_proj
        self.attention_norm = layer.input_layernorm
        self.mlp_norm = layer.post_attention_layernorm

    def forward(
        self,
        hidden_states: Tensor,  # [1, num_tokens, hidden_size]
        position_embeddings: tuple[Tensor, Tensor],  # cos and sin, [1, num_tokens, head_dim]
        **_: Any,
    ) -> Tensor:
        num_tokens = hidden_states.shape[1]
        qkv = self.qkv(_normalised(hidden_states, self.attention_norm))
        heads = qkv.view(num_tokens, -1, self.head_dim)
        num_turned = self.num_heads + self.num_kv_heads
        turned = _turned(heads[:, :num_turned], *position_embeddings).transpose(0, 1)[None]
        output, _weights = slot_attention(
            self,
            turned[:, : self.num_heads],
            turned[:, self.num_heads :],
            heads[:, num_turned:].transpose(0, 1)[None],
            scaling=self.scaling,
        )
        hidden_states = hidden_states + self.o(output.reshape(1, num_tokens, -1))
        gate_up = self.gate_up(_normalised(hidden_states, self.mlp_norm))
        gate, up = gate_up.chunk(2, dim=-1)
        output = self.down(silu(gate) * up)
        return torch.add(hidden_states, output)


def fuse_layers(model: Any, config: Any) -> None:
    """Replaces the decoder layers of a model of these families."""
    if config.model_type not in FAMILIES or getattr(config, "use_sliding_window", False):
        return
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        return
    layers = model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = FusedLayer(layer)


def _joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One layer whose output is theirs end to end."""
    weights, biases = zip(*map(linear_weight, linears), strict=True)
    weight = torch.cat(weights)
    joined = nn.Linear(weight.shape[1], weight.shape[0], biases[0] is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases[0] is not None:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


def _normalised(states: Tensor, norm: Any) -> Tensor:
    """RMS norm (arXiv 1910.07467) of [1, num_tokens, hidden_size]."""
    return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [num_tokens, num_heads, head_dim] (arXiv 2104.09864)."""
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return torch.addcmul(heads * cos[0, :, None], rotated, sin[0, :, None])
