"""The Llama family in fewer operations.

A short pass of a small model is made of calls, not of arithmetic: in transformers'
layer, those that are no products take longer than an int8 product. These layers
multiply query, key and value at once, and gate and up; turn query and key at
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

from outrider.engine.attention import ForwardPass
from outrider.engine.fused_layer import FusedLayer, RmsNorm
from outrider.engine.kv_cache import SlotCache
from outrider.engine.pieces import Piece
from outrider.engine.rope import rope_of
from outrider.engine.rotation import rotation_of

log = logging.getLogger(__name__)

# Families whose layers are Llama's, the biases of some projections aside.
FAMILIES = ("llama", "qwen2")


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
        assert forward_pass.pieces is not None  # passes on a CPU have them
        pieces = forward_pass.pieces.of(states, self.num_groups)
        keys, values = self._storage(forward_pass.cache, states)
        output: Tensor = self._run(states, cos, sin, keys, values, pieces)
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
        pieces: list[Piece],
    ) -> Tensor:
        for index, layer in enumerate(self.layers):
            states = layer(states, cos, sin, keys[index], values[index], pieces)
        return states


def can_fuse(config: Any) -> bool:
    """Whether `FusedLlama` computes what a model of this configuration does."""
    if config.model_type not in FAMILIES or getattr(config, "use_sliding_window", False):
        return False
    if config.hidden_act != "silu" or rope_of(config).kind:
        return False
    return not getattr(config, "mlp_bias", False)
