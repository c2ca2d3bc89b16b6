"""Activation functions whose bits do not depend on the numbers of rows and threads.

torch divides an operation on many elements among threads, possibly within a SIMD vector, and
computes partial vectors with other code, whose results may differ in the last bit. With one thread
there are no such divisions.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from outrider.engine.shapes import num_threads

# The least elements that torch gives to a thread, for most functions and for GELU.
_GRAIN = 32768
_SMALLEST_GRAIN = 2048


def silu_by_rows(input: Tensor, grain: int = _GRAIN) -> Tensor:
    """SiLU of [num_rows, width], of as many rows at a time as one thread computes.

    Works in TorchScript, too, where globals are available as default values only.
    """
    if input.numel() <= grain:
        return silu(input)
    rows = max(1, grain // input.shape[1])
    return torch.cat([silu(some) for some in input.split(rows)])


class OneThread(nn.Module):
    """An activation function, computed by one thread."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        is_divided = input.numel() > _SMALLEST_GRAIN
        with num_threads(1) if is_divided else nullcontext():
            output: Tensor = self.activation(input)
        return output


def use_one_thread(module: nn.Module) -> None:
    """Makes every activation function within `module` use one thread."""
    # Imported here, since it takes 90 MB, and drafts of our own layers do not need it.
    from transformers.activations import ACT2CLS

    kinds: tuple[Any, ...] = tuple(
        kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()
    )
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kinds) and not isinstance(parent, OneThread):
                setattr(parent, name, OneThread(child))
