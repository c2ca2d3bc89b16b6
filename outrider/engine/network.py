"""Networks run a model's passes: transformers' module or, for some families, our own."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from outrider.engine.attention.forward_pass import (
    IMPLEMENTATION,
    ForwardPass,
    attending,
    current_text_lengths,
    register,
)
from outrider.engine.attention.rope import rotate_by_sequence
from outrider.engine.cpu.fused_llama import FusedLlama
from outrider.engine.layers import can_fuse


class TransformersNetwork(nn.Module):
    """Runs any model that uses transformers' attention interface, over the slot cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        register()
        model.set_attn_implementation(IMPLEMENTATION)
        rotate_by_sequence(model, current_text_lengths)
        # Some look for padding, to warn of it, which waits for the device.
        with suppress(StrictDataclassError):  # of families that must have one
            model.config.pad_token_id = None
        self.model = model

    def forward(self, token_ids: Tensor, forward_pass: ForwardPass, rows: Tensor) -> Tensor:
        """Logits [len(rows), num_ids] at `rows` of the pass's tokens [num_tokens]."""
        captured = forward_pass.captured_layers
        with attending(forward_pass):
            output = self.model(
                input_ids=token_ids[None],
                position_ids=forward_pass.positions[None],
                use_cache=False,
                logits_to_keep=rows,
                **({"output_hidden_states": True} if captured else {}),
            )
        for layer in captured:
            forward_pass.hidden_states[layer] = output.hidden_states[layer][0]
        return output.logits[0]  # type: ignore[no-any-return]


Build = Callable[[Any, int], nn.Module]
"""Creates a network from a model and the maximum length of sequences."""


def networks_for(config: Any, is_whole: bool, on_gpu: bool) -> list[Build]:
    """The networks that can run a model of this configuration, the fastest first.

    Args:
        is_whole: whether this process holds the whole model; a rank needs transformers' layers.
    """
    if is_whole and can_fuse(config) and not on_gpu:
        return [FusedLlama]
    own: Sequence[Build] = ()
    if is_whole and on_gpu:
        from outrider.engine.cuda.gpu_network import gpu_networks

        own = gpu_networks(config)
    return [*own, lambda model, _: TransformersNetwork(model)]


def compile_network(network: nn.Module) -> None:
    """Compiles what can run without Python, to save its overhead."""
    if compile_layers := getattr(network, "compile_layers", None):
        compile_layers()
