"""Attention over the slot cache, for a packed ragged batch.

A pass packs chunks of several sequences into one row of tokens without padding.
Every layer stores the pass's keys and values in the slot cache; then each chunk
attends to its own slot, up to its own length. The function is registered with
transformers as an attention implementation, so the engine needs no model code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from outrider.engine.kv_cache import SlotCache

IMPLEMENTATION = "outrider"

# Keyword arguments with which some families ask for attention that this is not.
_UNSUPPORTED = ("softcap", "s_aux", "head_mask", "position_bias")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens that one sequence feeds into a pass, after its first `start` tokens."""

    slot: int
    start: int
    token_ids: Sequence[int]
    num_logits: int = 0
    """How many rows of logits are wanted, those of the chunk's last tokens."""
    copy_from: tuple[int, int] | None = None
    """A slot and a place: tokens from there up to `start` are copied from that slot first."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


class Pass:
    """One forward pass: its chunks, packed, and the masks that its layers share."""

    def __init__(self, chunks: Sequence[Chunk], cache: SlotCache, device: torch.device) -> None:
        self.chunks = chunks
        self.cache = cache
        self.windows: set[int] = set()  # sliding windows that layers asked for
        self.places = [(c.slot, c.start, c.end) for c in chunks]
        self.positions = torch.tensor(
            [position for c in chunks for position in range(c.start, c.end)], device=device
        )  # [num_tokens]
        self._masks: dict[tuple[int, int, int | None], Tensor | None] = {}

    def mask(self, index: int, query: Tensor, groups: int, window: int | None) -> Tensor | None:
        """Additive mask of chunk `index`, [groups * num_queries, end]; None if all is visible."""
        key = (index, groups, window)
        if key not in self._masks:
            self._masks[key] = _causal_mask(self.chunks[index], query, groups, window)
        return self._masks[key]


_current: ContextVar[Pass] = ContextVar("current_pass")


@contextmanager
def attending(forward_pass: Pass) -> Iterator[None]:
    """Layers that run inside attend within `forward_pass`."""
    token = _current.set(forward_pass)
    try:
        yield
    finally:
        _current.reset(token)


def slot_attention(
    module: nn.Module,
    query: Tensor,  # [1, num_heads, num_tokens, head_dim]
    key: Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it. Returns [1, num_tokens, num_heads, head_dim].

    Raises:
        NotImplementedError: the layer wants something that this would ignore.
    """
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    forward_pass = _current.get()
    if sliding_window is not None:
        forward_pass.windows.add(sliding_window)
    layer = module.layer_idx
    assert isinstance(layer, int)
    keys, values = forward_pass.cache.write(layer, key[0], value[0], forward_pass.places)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    offset = 0
    for index, chunk in enumerate(forward_pass.chunks):
        rows = query[0, :, offset : offset + len(chunk.token_ids)]
        mask = forward_pass.mask(index, rows, rows.shape[0] // keys.shape[1], sliding_window)
        outputs.append(
            _attend(
                rows,
                keys[chunk.slot, :, : chunk.end],
                values[chunk.slot, :, : chunk.end],
                mask,
                scale,
            )
        )
        offset += len(chunk.token_ids)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return output.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, slot_attention)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One chunk's attention: query [num_heads, n, d] over key and value [num_kv_heads, end, d].

    The query heads that share a key-value head are folded into rows, which spares
    copying keys and values once for each of them (`benchmarks/attention.py`).
    """
    num_heads, num_queries, head_dim = query.shape
    num_kv_heads = key.shape[0]
    rows = query.reshape(num_kv_heads, -1, head_dim)  # [num_kv_heads, groups * n, d]
    output = scaled_dot_product_attention(
        rows[None], key[None], value[None], attn_mask=mask, scale=scale
    )
    return output.reshape(num_heads, num_queries, -1)


def _causal_mask(chunk: Chunk, query: Tensor, groups: int, window: int | None) -> Tensor | None:
    if len(chunk.token_ids) == 1 and (window is None or chunk.end <= window):
        return None
    queries = torch.arange(chunk.start, chunk.end, device=query.device)[:, None]
    keys = torch.arange(chunk.end, device=query.device)[None, :]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = query.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    return mask.repeat(groups, 1)  # [groups * num_queries, end]
