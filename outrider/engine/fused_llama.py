"""The Llama family in fewer operations.

A short pass of a small model is made of calls, not of arithmetic: in transformers'
layer, those that are no products take longer than an int8 product. These layers
multiply query, key and value at once, and gate and up; turn query and key at
once; and normalise in one kernel. They are the only model code of the engine, and
are compared with transformers' own like all else when a model loads.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm, scaled_dot_product_attention, silu

from outrider.engine.attention import Pass, attending, slot_attention
from outrider.engine.packed_linear import linear_weight

log = logging.getLogger(__name__)

# Families whose layers are Llama's, the biases of some projections aside.
FAMILIES = ("llama", "qwen2")

# Ways to stretch the rotation that depend on the length of the text.
_CHANGING_ROTATIONS = ("dynamic", "longrope")


class FusedLlama(nn.Module):
    """A LlamaForCausalLM over the slot cache. It takes over the model's weights."""

    def __init__(self, model: Any, max_length: int) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        layers = [FusedLayer(layer) for layer in model.model.layers]
        self.layers = nn.ModuleList(layers)
        self.num_groups = layers[0].num_heads // layers[0].num_kv_heads
        self.norm = RmsNorm(model.model.norm)
        self.head = model.get_output_embeddings()
        states = self.embedding.weight[:1]
        places = torch.arange(max_length, device=states.device)
        cos, sin = model.model.rotary_emb(states, places[None])  # [1, max_length, head_dim]
        first, second = sin[0, :, None].chunk(2, dim=-1)
        self.cos = cos[0, :, None].contiguous()  # [max_length, 1, head_dim]
        self.sin = torch.cat((-first, second), dim=-1)
        self._compiled: Any = None

    def compile_layers(self) -> None:
        """Translates the layers to TorchScript, which spares Python's share of a pass.

        Call it once the layers have the form that they keep. Where this torch cannot, they
        stay as they are.
        """
        layers = Layers(self.layers)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated
                self._compiled = torch.jit.script(layers)
        except Exception as error:
            log.info("layers are not compiled: %s", str(error).strip().split("\n")[0])

    def forward(self, token_ids: Tensor, forward_pass: Pass, rows: Tensor) -> Tensor:
        """Logits [len(rows), num_ids] at `rows` of the pass's tokens [num_tokens]."""
        states = self.embedding(token_ids)  # [num_tokens, hidden_size]
        cos, sin = self.cos[forward_pass.positions], self.sin[forward_pass.positions]
        # What a layer's storage looks like is known once it has written.
        has_storage = forward_pass.cache.num_layers == len(self.layers)
        if self._compiled is not None and has_storage and len(forward_pass.chunks) == 1:
            states = self._run_alone(states, cos, sin, forward_pass)
        else:
            with attending(forward_pass):
                for layer in self.layers:
                    states = self._run_layer(layer, states, cos, sin)
        if len(rows) < len(states):
            states = states[rows]
        logits: Tensor = self.head(self.norm(states))
        return logits

    def _run_alone(self, states: Tensor, cos: Tensor, sin: Tensor, forward_pass: Pass) -> Tensor:
        """The layers, for the only chunk of a pass."""
        [chunk] = forward_pass.chunks
        mask = forward_pass.mask(0, states, self.num_groups, None)
        keys, values = forward_pass.cache.of_slot(chunk.slot, len(self.layers))
        # Passes differ in length, and what is optimised for one does not fit the next.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            output: Tensor = self._compiled(states, cos, sin, keys, values, chunk.start, mask)
        return output

    @staticmethod
    def _run_layer(layer: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """A layer, for several chunks that attend to their own slots."""
        heads = layer.heads_of(states, cos, sin)
        query, key, value = heads.transpose(0, 1)[None].split(layer.num_each, dim=1)
        output, _weights = slot_attention(layer, query, key, value, scaling=layer.scaling)
        after: Tensor = layer.finish(states, output.reshape(len(states), -1))
        return after


class Layers(nn.Module):
    """All layers over one slot, for TorchScript."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(
        self,
        states: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,  # [num_tokens, 1, head_dim]
        sin: Tensor,
        keys: list[Tensor],  # of each layer, [num_kv_heads, max_length, head_dim]
        values: list[Tensor],
        start: int,
        mask: Tensor | None,
    ) -> Tensor:
        for index, layer in enumerate(self.layers):
            states = layer(states, cos, sin, keys[index], values[index], start, mask)
        return states


class FusedLayer(nn.Module):
    """A LlamaDecoderLayer over the slot cache."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.num_kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.num_heads: int = attention.q_proj.out_features // self.head_dim
        self.num_each = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o = attention.o_proj
        self.gate_up = _joined([mlp.gate_proj, mlp.up_proj])
        self.down = mlp.down_proj
        self.attention_norm = RmsNorm(layer.input_layernorm)
        self.mlp_norm = RmsNorm(layer.post_attention_layernorm)

    def forward(
        self,
        states: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,  # [num_tokens, 1, head_dim]
        sin: Tensor,
        keys: Tensor,  # of the slot, [num_kv_heads, max_length, head_dim]
        values: Tensor,
        start: int,
        mask: Tensor | None,  # additive, [groups * num_tokens, end]
    ) -> Tensor:
        """[num_tokens, hidden_size] of one chunk to the same."""
        num_tokens = states.shape[0]
        end = start + num_tokens
        heads = self.heads_of(states, cos, sin)
        query, key, value = heads.transpose(0, 1).split(self.num_each, dim=0)
        keys[:, start:end] = key
        values[:, start:end] = value
        # The query heads that share a key-value head are rows of it; see attention.py.
        output = scaled_dot_product_attention(
            query.reshape(1, self.num_kv_heads, -1, self.head_dim),
            keys[None, :, :end],
            values[None, :, :end],
            attn_mask=mask,
            scale=self.scaling,
        )
        output = output.view(self.num_heads, num_tokens, self.head_dim)
        return self.finish(states, output.transpose(0, 1).reshape(num_tokens, -1))

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
        output: Tensor = states + self.down(silu(gate).mul_(up))
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
