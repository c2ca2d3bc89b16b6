"""The Llama family in fewer operations.

A short pass of a small model is made of calls, not of arithmetic: in transformers'
layer, those that are no products take longer than an int8 product. These layers
multiply query, key and value at once, and gate and up; turn query and key at
once; and normalise in one kernel. They are the only model code of the engine, and
are compared with transformers' own like all else when a model loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm, silu

from outrider.engine.attention import Pass, attending, slot_attention
from outrider.engine.packed_linear import linear_weight

# Families whose layers are Llama's, the biases of some projections aside.
FAMILIES = ("llama", "qwen2")

# Ways to stretch the rotation that depend on the length of the text.
_CHANGING_ROTATIONS = ("dynamic", "longrope")


class FusedLlama(nn.Module):
    """A LlamaForCausalLM over the slot cache. It takes over the model's weights."""

    def __init__(self, model: Any, max_length: int) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        self.layers = nn.ModuleList(FusedLayer(layer) for layer in model.model.layers)
        self.norm = RmsNorm(model.model.norm)
        self.head = model.get_output_embeddings()
        states = self.embedding.weight[:1]
        places = torch.arange(max_length, device=states.device)
        cos, sin = model.model.rotary_emb(states, places[None])  # [1, max_length, head_dim]
        first, second = sin[0, :, None].chunk(2, dim=-1)
        self.cos = cos[0, :, None].contiguous()  # [max_length, 1, head_dim]
        self.sin = torch.cat((-first, second), dim=-1)

    def forward(self, token_ids: Tensor, forward_pass: Pass, rows: Tensor) -> Tensor:
        """Logits [len(rows), num_ids] at `rows` of the pass's tokens [num_tokens]."""
        states = self.embedding(token_ids)  # [num_tokens, hidden_size]
        cos, sin = self.cos[forward_pass.positions], self.sin[forward_pass.positions]
        with attending(forward_pass):
            for layer in self.layers:
                states = layer(states, cos, sin)
        if len(rows) < len(states):
            states = states[rows]
        logits: Tensor = self.head(self.norm(states))
        return logits


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
        self.attention_norm = RmsNorm(layer.input_layernorm)
        self.mlp_norm = RmsNorm(layer.post_attention_layernorm)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[num_tokens, hidden_size] to the same; cos and sin are [num_tokens, 1, head_dim]."""
        num_tokens = states.shape[0]
        heads = self.qkv(self.attention_norm(states)).view(num_tokens, -1, self.head_dim)
        num_turned = self.num_heads + self.num_kv_heads
        turned = _turned(heads[:, :num_turned], cos, sin).transpose(0, 1)[None]
        output, _weights = slot_attention(
            self,
            turned[:, : self.num_heads],
            turned[:, self.num_heads :],
            heads[:, num_turned:].transpose(0, 1)[None],
            scaling=self.scaling,
        )
        states = states + self.o(output.reshape(num_tokens, -1))
        gate, up = self.gate_up(self.mlp_norm(states)).chunk(2, dim=-1)
        return torch.add(states, self.down(silu(gate).mul_(up)))


class RmsNorm(nn.Module):
    """RMS norm (arXiv 1910.07467) in one kernel.

    Torch has such a kernel for GPUs only. Elsewhere it is the layer norm of a vector and
    its negative, whose mean is 0 and whose variance is the mean square.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: Tensor = norm.weight.detach()
        self.weights = torch.cat((self.weight, self.weight))
        self.eps: float = norm.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:  # [num_tokens, hidden_size]
        if states.is_cuda:
            return rms_norm(states, self.weight.shape, self.weight, self.eps)
        both = torch.cat((states, -states), dim=-1)
        both = layer_norm(both, self.weights.shape, self.weights, None, self.eps)
        return both[:, : states.shape[1]]


def can_fuse(config: Any) -> bool:
    """Whether `FusedLlama` computes what a model of this configuration does."""
    if config.model_type not in FAMILIES or getattr(config, "use_sliding_window", False):
        return False
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if config.hidden_act != "silu" or rotation in _CHANGING_ROTATIONS:
        return False
    return not getattr(config, "mlp_bias", False)


def _joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One layer whose output is theirs end to end."""
    weights, biases = zip(*map(linear_weight, linears), strict=True)
    weight = torch.cat(weights)
    joined = nn.Linear(weight.shape[1], weight.shape[0], biases[0] is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases[0] is not None:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [num_tokens, num_heads, head_dim] (arXiv 2104.09864).

    The sign that one half of the rotated heads would have is in `sin`.
    """
    rotated = heads.roll(heads.shape[-1] // 2, dims=-1)
    return torch.addcmul(heads * cos, rotated, sin)
