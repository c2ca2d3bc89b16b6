"""Embeddings for CPUs: float16 where that is exact, for half of the memory."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from outrider.engine.cpu.packed_linear import ROWS_AT_A_TIME, rounding_of


class Float16Embedding(nn.Module):
    """Rows of a weight [num_embeddings, embedding_dim] in float16, as float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight.half())

    def forward(self, token_ids: Tensor) -> Tensor:  # [...]
        return embedding(token_ids, self.weight).float()


def halve_embeddings(module: nn.Module) -> None:
    """Replaces the embeddings within `module` whose weights float16 represents exactly."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Subclasses may do more than look up.
            if type(child) is nn.Embedding and _is_exact(child.weight):
                setattr(parent, name, Float16Embedding(child.weight.detach()))


def _is_exact(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and not any(
        bool(rounding_of(rows).count_nonzero()) for rows in weight.split(ROWS_AT_A_TIME)
    )
