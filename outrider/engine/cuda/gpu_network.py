"""Networks for GPUs, with as few kernels as torch and one own kernel permit.

On a GPU, a short pass takes the time for reading its weights plus a few microseconds per kernel, in
which hardly anything is read. So products of the same input are joined, results overwrite their
inputs, and products are added to the hidden states in the same kernel. Networks are compared with
transformers when a model is loaded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from outrider.engine.attention.forward_pass import AttentionLayer, ForwardPass
from outrider.engine.attention.rope import Rotation, rope_of
from outrider.engine.layers import (
    LayeredNetwork,
    LlamaWeights,
    RmsNorm,
    can_fuse,
    linear_weight,
)

# Rows of a weight for one column of ones: kernels need rows that begin at multiples of this.
_PADDING = 64


class GpuNetwork(LayeredNetwork):
    """A network whose layers take states [num_tokens, hidden_size], a rotation and a pass.

    Layers modify the states in place.
    """

    def run_layers(self, states: Tensor, rotation: Rotation, forward_pass: ForwardPass) -> Tensor:
        for layer in self.layers:
            layer(states, rotation, forward_pass)
        return states


class LlamaLayer(LlamaWeights):
    """A layer like Llama's: nine kernels."""

    def __init__(self, layer: Any, index: int) -> None:
        super().__init__(layer)
        self.attention = AttentionLayer(index, self.scaling)

    def forward(self, states: Tensor, rotation: Rotation, forward_pass: ForwardPass) -> None:
        num_tokens = len(states)
        heads = self.qkv(self.attention_norm(states)).view(num_tokens, -1, self.head_dim)
        query, key, value = heads.split(self.num_each, dim=1)
        forward_pass.attend(self.attention, query, key, value, rotation, output=query)
        _add_product(states, query.flatten(1), self.o)
        gate, up = self.gate_up(self.mlp_norm(states)).chunk(2, dim=-1)
        _add_product(states, silu(gate).mul_(up), self.down)


class NeoxLayer(nn.Module):
    """A layer of GPT-NeoX, whose attention and MLP have the same input: five kernels.

    (Six for a single token, since torch then adds the bias in a separate kernel.)

    One product computes the inputs of both, and one combines their outputs. For the former, the
    weights and biases of the two layer norms are merged into the product.
    """

    def __init__(self, layer: Any, index: int) -> None:
        super().__init__()
        attention, mlp = layer.attention, layer.mlp
        self.head_dim: int = attention.head_size
        self.attention = AttentionLayer(index, attention.scaling)
        self.eps: float = layer.input_layernorm.eps
        qkv, bias = _behind(layer.input_layernorm, attention.query_key_value)
        # Queries last: the output of attention takes their place, next to the inside of the MLP.
        qkv, bias = (_by_kind(each, self.head_dim) for each in (qkv, bias))
        up, up_bias = _behind(layer.post_attention_layernorm, mlp.dense_h_to_4h)
        ones = bias.new_zeros(_PADDING)
        ones[0] = 1.0
        padding = up.new_zeros(_PADDING, up.shape[1])
        self.hidden_size: int = up.shape[1]
        self.inward = _parameter(torch.cat((qkv, up, padding)))
        self.inward_bias = _parameter(torch.cat((bias, up_bias, ones)))
        dense, dense_bias = _weight_and_bias(attention.dense)
        down, down_bias = _weight_and_bias(mlp.dense_4h_to_h)
        biases = torch.zeros_like(padding)
        biases[0] = dense_bias + down_bias
        self.outward = _parameter(torch.cat((dense, down, biases.t()), dim=1))

    def forward(self, states: Tensor, rotation: Rotation, forward_pass: ForwardPass) -> None:
        size = self.hidden_size
        normal = layer_norm(states, [size], eps=self.eps)
        inner = linear(normal, self.inward, self.inward_bias)
        heads = inner[:, : 3 * size].view(len(states), -1, self.head_dim)
        key, value, query = heads.chunk(3, dim=1)
        forward_pass.attend(self.attention, query, key, value, rotation, output=query)
        torch.ops.aten.gelu_.default(inner[:, 3 * size : -_PADDING])
        states.addmm_(inner[:, 2 * size :], self.outward.t())


def gpu_networks(config: Any) -> list[Callable[[Any, int], GpuNetwork]]:
    """Constructors of networks for models of this configuration; empty if there are none."""
    if can_fuse(config):
        return [_of_llama]
    return [_of_neox] if _is_parallel_neox(config) else []


def _of_llama(model: Any, max_length: int) -> GpuNetwork:
    base = model.model
    layers = [LlamaLayer(layer, index) for index, layer in enumerate(base.layers)]
    return GpuNetwork(model, base.rotary_emb, layers, RmsNorm(base.norm), max_length)


def _of_neox(model: Any, max_length: int) -> GpuNetwork:
    base = model.gpt_neox
    layers = [NeoxLayer(layer, index) for index, layer in enumerate(base.layers)]
    return GpuNetwork(model, base.rotary_emb, layers, base.final_layer_norm, max_length)


def _is_parallel_neox(config: Any) -> bool:
    """Whether `NeoxLayer` computes the same as the layers of a model of this configuration."""
    if config.model_type != "gpt_neox" or rope_of(config).kind:
        return False
    return bool(config.use_parallel_residual and config.hidden_act == "gelu")


def _add_product(states: Tensor, inner: Tensor, linear: nn.Linear) -> None:
    states.addmm_(inner, linear.weight.t())
    if linear.bias is not None:
        states.add_(linear.bias)


def _weight_and_bias(linear: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = linear_weight(linear)
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def _behind(norm: Any, linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias that give, for normalised states, the output of `linear` behind `norm`."""
    weight, bias = _weight_and_bias(linear)
    scaled = weight.float() * norm.weight.float()
    moved = bias.float() + weight.float() @ norm.bias.float()
    return scaled.to(weight.dtype), moved.to(weight.dtype)


def _by_kind(joint: Tensor, head_dim: int) -> Tensor:
    """Rows ordered by keys, values and queries, from GPT-NeoX's order by heads."""
    query, key, value = joint.unflatten(0, (-1, 3, head_dim)).unbind(1)
    return torch.cat([each.flatten(0, 1) for each in (key, value, query)])


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
