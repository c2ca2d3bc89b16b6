"""The Llama family in fewer operations.

A short pass of a small model is made of calls, not of arithmetic: in transformers'
layer, those that are no products take longer than an int8 product. These layers
multiply query, key and value at once, and gate and up; rotate query and key at
once; and normalise in one kernel. On a CPU they are the only model code of the
engine (for GPUs see `gpu_network.py`), and are compared with transformers' own like
all else when a model loads.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from outrider.engine.attention.forward_pass import ForwardPass
from outrider.engine.attention.query_blocks import QueryBlock, attend_blocks
from outrider.engine.attention.rotation import rotation_of
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.cpu.activations import silu_by_rows
from outrider.engine.layers import RmsNorm, joined

log = logging.getLogger(__name__)


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
        blocks: list[QueryBlock],
    ) -> Tensor:
        """[num_tokens, hidden_size] to the same."""
        query, key, value = self.heads_of(states, cos, sin).split(self.num_each, dim=1)
        output = attend_blocks(query, key, value, keys, values, blocks, self.scaling)
        return self.finish(states, output.reshape(states.shape[0], -1))

    @torch.jit.export
    def heads_of(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries, keys and values, the first two rotated: [num_tokens, num_heads, head_dim].

        Rotary position embedding (arXiv 2104.09864); the sign that one half of the rotated
        heads would have is in `sin`.
        """
        heads: Tensor = self.qkv(self.attention_norm(states))
        heads = heads.view(states.shape[0], -1, self.head_dim)
        rotated = heads[:, : self.num_heads + self.num_kv_heads]
        halves = rotated.roll(self.head_dim // 2, dims=-1)
        rotated.copy_(torch.addcmul(rotated * cos, halves, sin))
        return heads

    @torch.jit.export
    def finish(self, states: Tensor, attention: Tensor) -> Tensor:
        """What follows attention [num_tokens, num_heads * head_dim]."""
        states = states + self.o(attention)
        gate, up = self.gate_up(self.mlp_norm(states)).chunk(2, dim=-1)
        output: Tensor = states + self.down(silu_by_rows(gate).mul_(up))
        return output


class FusedLlama(nn.Module):
    """A LlamaForCausalLM over the slot cache. It takes over the model's weights."""

    def __init__(self, model: Any, max_length: int) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        layers = [FusedLayer(layer) for layer in model.model.layers]
        self.layers = nn.ModuleList(layers)
        self.num_groups = layers[0].num_heads // layers[0].num_kv_heads
        self.head_dim = layers[0].head_dim
        self.norm = RmsNorm(model.model.norm)
        self.head = model.get_output_embeddings()
        states = self.embedding.weight[:1]
        places = torch.arange(max_length, device=states.device)
        cos, sin = model.model.rotary_emb(states, places[None])  # [1, max_length, head_dim]
        self.cos, self.sin, _ = rotation_of(cos[0], sin[0], self.head_dim)
        self._run: Any = Layers(self.layers)

    def compile_layers(self) -> None:
        """Translates the layers to TorchScript, which spares Python's share of a pass.

        Call it once the layers have the form that they keep. Where this torch cannot, they
        stay as they are.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated
                self._run = torch.jit.script(Layers(self.layers))
        except Exception as error:
            log.info("layers are not compiled: %s", str(error).strip().split("\n")[0])

    def forward(self, token_ids: Tensor, forward_pass: ForwardPass, rows: Tensor) -> Tensor:
        """Logits [len(rows), num_ids] at `rows` of the pass's tokens [num_tokens]."""
        states = self.embedding(token_ids)  # [num_tokens, hidden_size]
        cos, sin = self.cos[forward_pass.positions], self.sin[forward_pass.positions]
        # Passes differ in length, and what is optimised for one does not fit the next.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            states = self._run_layers(states, cos, sin, forward_pass)
        if len(rows) < len(states):
            states = states[rows]
        logits: Tensor = self.head(self.norm(states))
        return logits

    def _run_layers(
        self, states: Tensor, cos: Tensor, sin: Tensor, forward_pass: ForwardPass
    ) -> Tensor:
        assert forward_pass.blocks is not None  # passes on a CPU have them
        blocks = forward_pass.blocks.of(states, self.num_groups)
        keys, values = self._storage(forward_pass.cache, states)
        output: Tensor = self._run(states, cos, sin, keys, values, blocks)
        return output

    def _storage(self, cache: SlotCache, states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values by layer, each [num_slots, num_kv_heads, max_length, head_dim]."""
        layers: Any = self.layers
        like = states.new_empty(0, layers[0].num_kv_heads, layers[0].head_dim)
        pairs = [cache.storage(index, like, like) for index in range(len(layers))]
        return [keys for keys, _ in pairs], [values for _, values in pairs]


class Layers(nn.Module):
    """All layers, for TorchScript."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(
        self,
        states: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,  # [num_tokens, 1, head_dim]
        sin: Tensor,
        keys: list[Tensor],  # of each layer, [num_slots, num_kv_heads, max_length, head_dim]
        values: list[Tensor],
        blocks: list[QueryBlock],
    ) -> Tensor:
        for index, layer in enumerate(self.layers):
            states = layer(states, cos, sin, keys[index], values[index], blocks)
        return states
