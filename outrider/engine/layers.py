"""Parts that the layers for CPUs and for GPUs share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm
from transformers.pytorch_utils import Conv1D

from outrider.engine.attention.forward_pass import ForwardPass
from outrider.engine.attention.rope import Rotation, rope_of, rotation_of

# Families whose layers are Llama's, the biases of some projections aside.
FAMILIES = ("llama", "qwen2")


def linear_weight(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight, [out_features, in_features], and bias of a linear layer, also of GPT-2's kind."""
    weight = linear.get_parameter("weight").detach()
    bias = None if linear.bias is None else linear.get_parameter("bias").detach()
    return weight.t().contiguous() if isinstance(linear, Conv1D) else weight.contiguous(), bias


class RmsNorm(nn.Module):
    """RMS norm (arXiv 1910.07467) in one kernel.

    torch has such a kernel for GPUs only. Elsewhere, the layer norm of the concatenation of a
    vector and its negative is computed, whose mean is 0 and whose variance is the mean square.
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
        return layer_norm(both, [2 * self.size], self.weights, None, self.eps)[..., : self.size]


def joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer whose output is the concatenation of the layers' outputs."""
    weights, biases = zip(*map(linear_weight, linears), strict=True)
    weight = torch.cat(weights)
    joined = nn.Linear(weight.shape[1], weight.shape[0], biases[0] is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases[0] is not None:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


class LlamaWeights(nn.Module):
    """The weights of a LlamaDecoderLayer; those that multiply the same input are joined."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.num_each: list[int] = [each.out_features // self.head_dim for each in projections]
        self.qkv = joined(projections)
        self.o = attention.o_proj
        self.gate_up = joined((mlp.gate_proj, mlp.up_proj))
        self.down = mlp.down_proj
        self.attention_norm = RmsNorm(layer.input_layernorm)
        self.mlp_norm = RmsNorm(layer.post_attention_layernorm)
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.query_norm, self.key_norm = (norm and RmsNorm(norm) for norm in norms)


class LayeredNetwork(nn.Module):
    """A model over the slot cache, with layers of this package and the weights of the given model.

    Args:
        rotary: transformers' module that computes the tables of rotary embeddings.
    """

    def __init__(
        self, model: Any, rotary: Any, layers: Sequence[Any], norm: nn.Module, max_length: int
    ) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = model.get_output_embeddings()
        states = self.embedding.weight[:1]
        cos, sin = rotary(states, torch.arange(max_length, device=states.device)[None])
        self.rotation = rotation_of(cos[0], sin[0], layers[0].head_dim)

    def forward(self, token_ids: Tensor, forward_pass: ForwardPass, rows: Tensor) -> Tensor:
        """Logits [len(rows), num_ids] at `rows` of the pass's tokens [num_tokens]."""
        rotation = self.rotation.at(forward_pass.positions)
        states = self.run_layers(self.embedding(token_ids), rotation, forward_pass)
        if len(rows) < len(states):
            states = states[rows]
        return self.head(self.norm(states))  # type: ignore[no-any-return]

    def run_layers(self, states: Tensor, rotation: Rotation, forward_pass: ForwardPass) -> Tensor:
        """States [num_tokens, hidden_size] after all layers; `states` may be modified in place."""
        raise NotImplementedError


def can_fuse(config: Any) -> bool:
    """Whether models of this configuration compute the same as Llama's layers."""
    return (
        config.model_type in FAMILIES
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and not getattr(config, "mlp_bias", False)
        and not rope_of(config).kind
    )
