"""Rotary position embeddings (arXiv 2104.09864) of all dimensions of a head or the first ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """The rotation of some tokens' heads."""

    cos: Tensor  # [num_tokens, 1, head_dim]; 1 where nothing is rotated
    sin: Tensor  # [num_tokens, 1, head_dim]; 0 where nothing is rotated
    """Negated in the first half, so that the swapped halves of heads keep their signs."""
    size: int
    """How many dimensions are rotated, the first half of them with the second."""

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of tokens at these positions, if this one is of all positions."""
        return Rotation(self.cos[positions], self.sin[positions], self.size)

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotates queries or keys, [num_tokens, num_heads, head_dim]."""
        halves = heads[..., : self.size].roll(self.size // 2, dims=-1)
        if self.size < heads.shape[-1]:
            halves = torch.cat((halves, heads[..., self.size :]), dim=-1)
        return torch.addcmul(heads * self.cos, halves, self.sin)


def rotation_of(cos: Tensor, sin: Tensor, head_dim: int) -> Rotation:
    """The rotation of all positions, from transformers' tables [max_length, size]."""
    max_length, size = cos.shape
    first, second = sin.chunk(2, dim=-1)
    rest = cos.new_ones(max_length, head_dim - size)
    cos = torch.cat((cos, rest), dim=-1)
    sin = torch.cat((-first, second, torch.zeros_like(rest)), dim=-1)
    return Rotation(cos[:, None], sin[:, None], size)
