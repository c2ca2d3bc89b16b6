"""A Llama layer in fewer operations, over the slot cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from outrider.engine.activations import silu_by_rows
from outrider.engine.packed_linear import linear_weight
from outrider.engine.pieces import Piece, attend_pieces


class FusedLayer(nn.Module):
    """A LlamaDecoderLayer over the slot cache."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.num_kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.num_heads: int = attention.q_proj.out_features // self.head_dim
        self.num_each = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o = attention.o_proj
        self.gate_up = joined([mlp.gate_proj, mlp.up_proj])
        self.down = mlp.down_proj
        self.attention_norm = RmsNorm(layer.input_layernorm)
        self.mlp_norm = RmsNorm(layer.post_attention_layernorm)

    def forward(
        self,
        states: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,  # [num_tokens, 1, head_dim]
        sin: Tensor,
        keys: Tensor,  # [num_slots, num_kv_heads, max_length, head_dim]
        values: Tensor,
        pieces: list[Piece],
    ) -> Tensor:
        """[num_tokens, hidden_size] to the same."""
        query, key, value = self.heads_of(states, cos, sin).split(self.num_each, dim=1)
        output = attend_pieces(query, key, value, keys, values, pieces, self.scaling)
        return self.finish(states, output.reshape(states.shape[0], -1))

    @torch.jit.export
    def heads_of(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries, keys and values, the first two turned: [num_tokens, num_heads, head_dim].

        Rotary position embedding (arXiv 2104.09864); the sign that one half of the rotated
        heads would have is in `sin`.
        """
        heads: Tensor = self.qkv(self.attention_norm(states))
        heads = heads.view(states.shape[0], -1, self.head_dim)
        turned = heads[:, : self.num_heads + self.num_kv_heads]
        rotated = turned.roll(self.head_dim // 2, dims=-1)
        turned.copy_(torch.addcmul(turned * cos, rotated, sin))
        return heads

    @torch.jit.export
    def finish(self, states: Tensor, attention: Tensor) -> Tensor:
        """What follows attention [num_tokens, num_heads * head_dim]."""
        states = states + self.o(attention)
        gate, up = self.gate_up(self.mlp_norm(states)).chunk(2, dim=-1)
        output: Tensor = states + self.down(silu_by_rows(gate).mul_(up))
        return output


class RmsNorm(nn.Module):
    """RMS norm (arXiv 1910.07467) in one kernel.

    Torch has such a kernel for GPUs only. Elsewhere it is the layer norm of a vector and
    its negative, whose mean is 0 and whose variance is the mean square.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: Tensor = norm.weight.detach()
        self.weights = torch.cat((self.weight, self.weight))
        self.size: int = len(self.weight)
        self.eps: float = norm.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:  # [num_tokens, hidden_size]
        if states.is_cuda:
            return rms_norm(states, [self.size], self.weight, self.eps)
        both = torch.cat((states, -states), dim=-1)
        return layer_norm(both, [2 * self.size], self.weights, None, self.eps)[:, : self.size]


def joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One layer whose output is theirs end to end."""
    weights, biases = zip(*map(linear_weight, linears), strict=True)
    weight = torch.cat(weights)
    joined = nn.Linear(weight.shape[1], weight.shape[0], biases[0] is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases[0] is not None:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined
