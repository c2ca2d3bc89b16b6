"""The Llama family in fewer operations.

The time of a short pass of a small model is that of calls rather than of arithmetic: in a layer of
transformers, the calls other than products take longer than an int8 product. The layers here have
one product for query, key and value, and one for gate and up; they rotate query and key in one
call, and normalize in one kernel. For CPUs this is the only model code of the engine (for GPUs see
`gpu_network.py`). Like all networks it is compared with transformers when a model is loaded.
"""

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from outrider.engine.attention.forward_pass import ForwardPass
from outrider.engine.attention.query_blocks import QueryBlock, attend_blocks
from outrider.engine.attention.rope import Rotation
from outrider.engine.cpu.activations import silu_by_rows
from outrider.engine.layers import LayeredNetwork, LlamaWeights, RmsNorm

log = logging.getLogger(__name__)


def scripted(module: nn.Module) -> Any:
    """The module in TorchScript, which saves Python's share of a pass. It must not change later.

    Without support in this torch, the module as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated
            # Frozen: what layers hold is looked up now and not in each pass.
            return torch.jit.freeze(torch.jit.script(module.eval()), optimize_numerics=False)
    except Exception as error:
        log.info("layers are not compiled: %s", str(error).strip().split("\n")[0])
        return module


class FusedLayer(LlamaWeights):
    """A LlamaDecoderLayer over the slot cache."""

    def forward(
        self,
        states: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,  # [num_tokens, 1, head_dim]
        sin: Tensor,
        keys: Tensor,  # [num_slots, num_kv_heads, max_length, head_dim]
        values: Tensor,
        blocks: list[QueryBlock],
    ) -> Tensor:
        """The hidden states after the layer, [num_tokens, hidden_size]."""
        return self.pass_on(states, self.attention_norm(states), cos, sin, keys, values, blocks)

    def pass_on(
        self,
        states: Tensor,
        inputs: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        blocks: list[QueryBlock],
    ) -> Tensor:
        """The same, with `inputs` [num_tokens, input_size] for attention instead of `states`."""
        num_tokens = states.shape[0]
        heads = self.qkv(inputs).view(num_tokens, -1, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query, key, value = heads.split(self.num_each, dim=1)
            heads = torch.cat((self.query_norm(query), self.key_norm(key), value), dim=1)
        # Queries and keys are rotated at once (arXiv 2104.09864). `sin` has the sign of the
        # swapped half.
        rotated = heads[:, : self.num_each[0] + self.num_each[1]]
        halves = rotated.roll(self.head_dim // 2, dims=-1)
        rotated.copy_(torch.addcmul(rotated * cos, halves, sin))
        query, key, value = heads.split(self.num_each, dim=1)
        attended = attend_blocks(query, key, value, keys, values, blocks, self.scaling)
        states = states + self.o(attended.reshape(num_tokens, -1))
        gate, up = self.gate_up(self.mlp_norm(states)).chunk(2, dim=-1)
        return states + self.down(silu_by_rows(gate).mul_(up))  # type: ignore[no-any-return]


class FusedLlama(LayeredNetwork):
    """A LlamaForCausalLM, whose layers are taken out of the given model."""

    def __init__(self, model: Any, max_length: int) -> None:
        base = model.model
        # One after another, so that there are never two copies of all weights.
        layers = [FusedLayer(base.layers.pop(0)) for _ in range(len(base.layers))]
        super().__init__(model, base.rotary_emb, layers, RmsNorm(base.norm), max_length)
        num_heads, num_kv_heads, _ = layers[0].num_each
        self.num_groups = num_heads // num_kv_heads
        self.head_shape = (num_kv_heads, layers[0].head_dim)
        self._run: Any = Layers(self.layers)

    def compile_layers(self) -> None:
        """See `scripted`. Call it once the layers are final."""
        self._run = scripted(Layers(self.layers))

    def run_layers(self, states: Tensor, rotation: Rotation, forward_pass: ForwardPass) -> Tensor:
        assert forward_pass.blocks is not None  # passes on a CPU have them
        blocks = forward_pass.blocks.of(states, self.num_groups)
        like = states.new_empty(0, *self.head_shape)
        keys, values = forward_pass.cache.storages(len(self.layers), like)
        captured = forward_pass.captured_layers
        # Passes differ in length, and code optimised for one does not fit the next.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            output: Tensor
            output, entering = self._run(
                states, rotation.cos, rotation.sin, keys, values, blocks, captured
            )
        forward_pass.hidden_states = dict(zip(captured, entering, strict=True))
        return output


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
        captured: list[int],
    ) -> tuple[Tensor, list[Tensor]]:
        """The hidden states after the last layer, and the inputs of the `captured` layers."""
        entering: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if index in captured:
                entering.append(states)
            states = layer(states, cos, sin, keys[index], values[index], blocks)
        return states, entering
