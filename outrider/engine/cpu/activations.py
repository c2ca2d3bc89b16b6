"""Activation functions whose bits do not depend on how many rows and threads there are.

Torch divides an operation on many elements among threads, maybe in the middle of a vector, and
computes what is left over of a vector by other code, which may differ in the last bit. One thread
takes vectors as they come.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import ACT2CLS

from outrider.engine.shapes.row_sizes import num_threads

# Elements that torch gives to one thread at least, of most functions and of GELU.
_GRAIN = 32768
_SMALLEST_GRAIN = 2048

_KINDS: tuple[Any, ...] = tuple(
    kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()
)


def silu_by_rows(input: Tensor, grain: int = _GRAIN) -> Tensor:
    """SiLU of [num_rows, width], of as many rows at a time as one thread takes.

    For TorchScript, too, to which globals are known as default values only.
    """
    if input.numel() <= grain:
        return silu(input)
    rows = max(1, grain // input.shape[1])
    return torch.cat([silu(some) for some in input.split(rows)])


class OneThread(nn.Module):
    """An activation that one thread computes."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        is_divided = input.numel() > _SMALLEST_GRAIN
        with num_threads(1) if is_divided else nullcontext():
            output: Tensor = self.activation(input)
        return output


def use_one_thread(module: nn.Module) -> None:
    """Lets one thread compute every activation function below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _KINDS) and not isinstance(parent, OneThread):
                setattr(parent, name, OneThread(child))
