"""The network of a feature draft: usually one layer, which reads tokens and hidden states.

Token i of a sequence is read with the hidden states of token i - 1: the target's, fused into one
vector, or the draft's own if the target's are not known yet. A step of one token takes about forty
torch operations, which run without Python.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from outrider.engine.attention.forward_pass import ForwardPass
from outrider.engine.attention.query_blocks import QueryBlock
from outrider.engine.attention.rope import rotation_of
from outrider.engine.cpu.fused_llama import FusedLayer, scripted
from outrider.engine.eagle3.checkpoint import Eagle3Model
from outrider.engine.layers import RmsNorm


class Fusion(nn.Module):
    """Makes one vector of the target's hidden states of a token."""

    def __init__(self, model: Eagle3Model) -> None:
        super().__init__()
        norms = model.fc_norm if model.input_norm is None else [model.input_norm]
        self.norms = nn.ModuleList(RmsNorm(norm) for norm in norms)
        self.fc = model.fc

    def forward(self, features: Tensor) -> Tensor:
        """[num_tokens, hidden_size] of [num_tokens, num_features * size]."""
        if len(self.norms) > 0:
            parts = features.chunk(len(self.norms), dim=-1)
            normed: list[Tensor] = []
            for index, norm in enumerate(self.norms):
                normed.append(norm(parts[index]))
            features = torch.cat(normed, dim=-1)
        fused: Tensor = self.fc(features)
        return fused


class FeatureLayer(FusedLayer):
    """The first layer. The input of its attention is the embedding and the hidden states."""

    def __init__(self, layer: Any, residual_is_normed: bool) -> None:
        super().__init__(layer)
        self.hidden_norm = RmsNorm(layer.hidden_norm)
        self.residual_is_normed = residual_is_normed

    def read(
        self,
        embedded: Tensor,  # [num_tokens, hidden_size], normed
        hidden: Tensor,  # [num_tokens, hidden_size]
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        blocks: list[QueryBlock],
    ) -> Tensor:
        """The hidden states after the layer, [num_tokens, hidden_size]."""
        normed = self.hidden_norm(hidden)
        states = normed if self.residual_is_normed else hidden
        inputs = torch.cat((embedded, normed), dim=-1)
        return self.pass_on(states, inputs, cos, sin, keys, values, blocks)


class Steps(nn.Module):
    """A whole pass, for TorchScript."""

    embedded: Tensor  # [vocab_size, hidden_size]
    cos: Tensor  # [max_length, 1, head_dim]
    sin: Tensor

    def __init__(self, model: Eagle3Model, max_length: int) -> None:
        super().__init__()
        first, *others = model.layers
        settings = model.settings
        self.first = FeatureLayer(first, settings.residual_is_normed)
        self.others = nn.ModuleList(FusedLayer(layer) for layer in others)
        self.norm = RmsNorm(model.norm)
        self.head = model.lm_head
        self.output_is_normed = settings.output_is_normed
        # The embedding is read for this norm only, so it is kept normed.
        norm = RmsNorm(model.layers[0].input_layernorm)
        table = torch.cat([norm(some) for some in model.embed_tokens.weight.split(4096)])
        self.register_buffer("embedded", table)
        cos, sin = (each.to(table) for each in model.rotary.tables(max_length))
        rotation = rotation_of(cos, sin, self.first.head_dim)
        self.register_buffer("cos", rotation.cos)
        self.register_buffer("sin", rotation.sin)

    def forward(
        self,
        token_ids: Tensor,  # [num_tokens]
        positions: Tensor,  # [num_tokens]
        hidden: Tensor,  # [num_tokens, hidden_size]
        keys: list[Tensor],  # of each layer, [num_slots, num_kv_heads, max_length, head_dim]
        values: list[Tensor],
        blocks: list[list[QueryBlock]],  # of each layer
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [len(rows), num_ids] and hidden states [len(rows), hidden_size] at `rows`.

        None stands for all tokens.
        """
        embedded = embedding(token_ids, self.embedded).to(hidden.dtype)
        cos, sin = self.cos[positions], self.sin[positions]
        states = self.first.read(embedded, hidden, cos, sin, keys[0], values[0], blocks[0])
        for index, layer in enumerate(self.others):
            number = index + 1
            states = layer(states, cos, sin, keys[number], values[number], blocks[number])
        if rows is not None:
            states = states[rows]
        normed = self.norm(states)
        return self.head(normed), normed if self.output_is_normed else states


class Eagle3Network(nn.Module):
    """A draft's network over the slot cache, with the weights of the given model."""

    def __init__(self, model: Eagle3Model, max_length: int) -> None:
        super().__init__()
        config = model.settings.layer_config
        self.fusion = Fusion(model)
        self.steps = Steps(model, max_length)
        self.windows = _windows(config)
        num_heads, num_kv_heads, _ = self.steps.first.num_each
        self._groups = num_heads // num_kv_heads
        self._head_shape = (num_kv_heads, self.steps.first.head_dim)
        self.fuse: Any = self.fusion
        self._run: Any = self.steps

    def forward(
        self, token_ids: Tensor, hidden: Tensor, forward_pass: ForwardPass, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Steps`."""
        assert forward_pass.blocks is not None
        blocks = [forward_pass.blocks.of(hidden, self._groups, each) for each in self.windows]
        like = hidden.new_empty(0, *self._head_shape)
        keys, values = forward_pass.cache.storages(len(self.windows), like)
        # Passes differ in length, and code optimised for one does not fit the next.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self._run(token_ids, forward_pass.positions, hidden, keys, values, blocks, rows)  # type: ignore[no-any-return]

    def compile_layers(self) -> None:
        """See `scripted`. Call it once the layers are final."""
        self.fuse = scripted(self.fusion)
        self._run = scripted(self.steps)


def _windows(config: Any) -> list[int | None]:
    """The sliding window of each layer; None: it sees all tokens."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    return [window if kind == "sliding_attention" else None for kind in kinds]
