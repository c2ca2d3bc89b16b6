"""Activation functions, a few rows at a time.

Torch divides an operation on many elements among threads, maybe in the middle of a vector, and
computes what is left over of a vector by other code, which may differ in the last bit. An operation
on no more elements than one thread takes at once is divided by none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import ACT2CLS

# Elements that torch gives to one thread, at least.
GRAIN = 32768

_KINDS: tuple[Any, ...] = tuple(
    kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()
)


def silu_by_rows(input: Tensor, grain: int = GRAIN) -> Tensor:
    """SiLU of [num_rows, width]. For TorchScript, which takes globals as default values only."""
    if input.numel() <= grain:
        return silu(input)
    rows = max(1, grain // input.shape[1])
    return torch.cat([silu(some) for some in input.split(rows)])


class RowsAtATime(nn.Module):
    """An activation of [..., num_rows, width], of so many rows at a time as one thread takes."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() <= GRAIN or input.dim() < 2:
            output: Tensor = self.activation(input)
            return output
        rows = max(1, GRAIN // input.shape[-1])
        return torch.cat([self.activation(some) for some in input.split(rows, dim=-2)], dim=-2)


def split_activations(module: nn.Module) -> None:
    """Replaces every activation function below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _KINDS) and not isinstance(parent, RowsAtATime):
                setattr(parent, name, RowsAtATime(child))
