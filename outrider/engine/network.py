"""What runs a model's passes: transformers' own module, or ours for the families that have one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from outrider.engine.attention import IMPLEMENTATION, ForwardPass, attending
from outrider.engine.fused_llama import FusedLlama, can_fuse


class TransformersNetwork(nn.Module):
    """A model of any family that uses transformers' attention interface, over the slot cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.set_attn_implementation(IMPLEMENTATION)
        # Some look for padding, to warn of it, and wait for the device. Here is none.
        model.config.pad_token_id = None
        self.model = model

    def forward(self, token_ids: Tensor, forward_pass: ForwardPass, rows: Tensor) -> Tensor:
        """Logits [len(rows), num_ids] at `rows` of the pass's tokens [num_tokens]."""
        with attending(forward_pass):
            output = self.model(
                input_ids=token_ids[None],
                position_ids=forward_pass.positions[None],
                use_cache=False,
                logits_to_keep=rows,
            )
        logits: Tensor = output.logits[0]
        return logits


def network_of(model: Any, max_length: int, is_whole: bool = True) -> nn.Module:
    """What runs a model's passes; transformers' own layers where this is a part of a model."""
    if is_whole and can_fuse(model.config):
        return FusedLlama(model, max_length)
    return TransformersNetwork(model)


def compile_network(network: nn.Module) -> None:
    """Spares Python's share of a pass where that can be done."""
    if isinstance(network, FusedLlama):
        network.compile_layers()
