"""Attention over the slot cache, for a packed ragged batch.

A pass packs chunks of several sequences into one row of tokens without padding.
Every layer stores the pass's keys and values in the slot cache; then each chunk
attends to its own slot, up to its own length, short ones together. The function is registered with
transformers as an attention implementation, so families need no model code of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from outrider.engine.chunk import Chunk
from outrider.engine.chunk_batch import ChunkBatch, Rows, attend_rows, batches_of, hidden_from
from outrider.engine.kv_cache import Places, SlotCache
from outrider.engine.rotation import Rotation

IMPLEMENTATION = "outrider"

# Keyword arguments with which some families ask for attention that this is not.
_UNSUPPORTED = ("softcap", "s_aux", "head_mask", "position_bias")


class Batch(Protocol):
    """Chunks that attend together."""

    def rows(self, like: Tensor, groups: int, window: int | None) -> Rows:
        """For layers with so many query heads to a key-value head, and such a sliding window."""
        ...


class OnlyChunk:
    """A pass's only chunk, and the masks that its layers share."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def mask(self, query: Tensor, groups: int, window: int | None) -> Tensor | None:
        """Additive, [groups * num_queries, end]; None if all is visible."""
        key = (groups, window)
        if key not in self._masks:
            self._masks[key] = _causal_mask(self.chunk, query, groups, window)
        return self._masks[key]


class AttentionLayer(NamedTuple):
    """How a layer attends."""

    number: int
    scale: float
    window: int | None = None


class ForwardPass:
    """What layers ask about the pass that they run in.

    Args:
        positions: [num_tokens], of the pass's tokens in their sequences
        places: where their keys and values are stored
        alone: the chunk that attends to its slot by itself; else all are in `batches`
    """

    def __init__(
        self,
        cache: SlotCache,
        positions: Tensor,
        places: Places,
        alone: OnlyChunk | None = None,
        batches: Sequence[Batch] = (),
    ) -> None:
        self.cache = cache
        self.positions = positions
        self.places = places
        self.alone = alone
        self.batches = batches
        self.windows: set[int] = set()
        """Sliding windows that layers asked for."""

    def attend(
        self,
        layer: AttentionLayer,
        query: Tensor,  # [num_tokens, num_heads, head_dim]
        key: Tensor,  # [num_tokens, num_kv_heads, head_dim]
        value: Tensor,
        rotation: Rotation | None = None,
        output: Tensor | None = None,
    ) -> Tensor:
        """Stores keys and values, and attends: [num_tokens, num_heads, head_dim].

        Args:
            rotation: queries and keys are turned by it first.
            output: where the result goes, maybe the place of `query`.
        """
        if rotation is not None:
            query, key = rotation.turn(query), rotation.turn(key)
        if layer.window is not None:
            self.windows.add(layer.window)
        keys, values = self.cache.write(layer.number, key, value, self.places)
        if self.alone is not None:
            attended = _attend_alone(self.alone, query, keys, values, layer)
        else:
            groups = query.shape[1] // keys.shape[1]
            attended = torch.empty_like(query, memory_format=torch.contiguous_format)
            for batch in self.batches:
                rows = batch.rows(query, groups, layer.window)
                attended[rows.tokens] = attend_rows(query, keys, values, rows, layer.scale)
        return attended if output is None else output.copy_(attended)


class Pass(ForwardPass):
    """One forward pass: its chunks, packed."""

    def __init__(self, chunks: Sequence[Chunk], cache: SlotCache, device: torch.device) -> None:
        positions = torch.tensor(
            [position for c in chunks for position in range(c.start, c.end)], device=device
        )  # [num_tokens]
        if len(chunks) == 1:
            [only] = chunks
            place = (only.slot, slice(only.start, only.end))
            super().__init__(cache, positions, place, alone=OnlyChunk(only))
            return
        slots = torch.tensor([c.slot for c in chunks for _ in c.token_ids], device=device)
        ends = list(accumulate(len(c.token_ids) for c in chunks))
        rows = [slice(end - len(c.token_ids), end) for c, end in zip(chunks, ends, strict=True)]
        batches = [ChunkBatch(chunks, members, rows, device) for members in batches_of(chunks)]
        super().__init__(cache, positions, (slots, positions), batches=batches)


_current: ContextVar[ForwardPass] = ContextVar("current_pass")


@contextmanager
def attending(forward_pass: ForwardPass) -> Iterator[None]:
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
    number = module.layer_idx
    assert isinstance(number, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = AttentionLayer(number, scale, sliding_window)
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    output = _current.get().attend(layer, query, key, value)
    return output.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, slot_attention)


def _attend_alone(
    only: OnlyChunk,
    query: Tensor,  # [num_queries, num_heads, head_dim]
    keys: Tensor,  # [num_slots, num_kv_heads, max_length, head_dim]
    values: Tensor,
    layer: AttentionLayer,
) -> Tensor:
    """Attention of a pass's only chunk, [num_queries, num_heads, head_dim].

    The query heads that share a key-value head are folded into rows, which spares
    copying keys and values once for each of them (`benchmarks/attention.py`).
    """
    num_queries, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    # [1, num_kv_heads, groups * num_queries, head_dim]
    rows = query.transpose(0, 1).reshape(1, num_kv_heads, -1, head_dim)
    key, value = (stored[only.chunk.slot, :, : only.chunk.end][None] for stored in (keys, values))
    mask = only.mask(query, num_heads // num_kv_heads, layer.window)
    output = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=layer.scale)
    return output.reshape(num_heads, num_queries, head_dim).transpose(0, 1)


def _causal_mask(chunk: Chunk, query: Tensor, groups: int, window: int | None) -> Tensor | None:
    if len(chunk.token_ids) == 1 and (window is None or chunk.end <= window):
        return None
    queries = torch.arange(chunk.start, chunk.end, device=query.device)[:, None]
    keys = torch.arange(chunk.end, device=query.device)[None, :]
    hidden = hidden_from(queries, keys, window)
    mask = query.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    return mask.repeat(groups, 1)  # [groups * num_queries, end]
