"""Attention of several chunks in one operation, for GPUs.

A step of many sessions consists of many short chunks. Attention slot by slot costs kernel launches
for each session and layer; one batch over the slots' storage costs arithmetic on padding. If there
is little padding, the batch is faster.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from outrider.engine.chunk import Chunk

# The cost of longer chunks is arithmetic rather than calls.
_LONGEST_CHUNK = 16
# Entries of the batch's storage, padding included, for each that counts; at most.
_MOST_PADDING = 3.0


class Rows(NamedTuple):
    """Where the tokens of a batch are, in the pass and in the slots' storage."""

    sources: Tensor  # [num_rows * width], indices of the pass's tokens; any for padding
    places: Tensor  # [num_tokens], indices of `sources` without padding
    tokens: Tensor  # [num_tokens], indices of these tokens in the pass
    first_slot: int
    num_rows: int
    width: int
    length: int
    mask: Tensor  # additive, [num_rows, 1, groups * width, length]
    slots: Tensor | None = None  # [num_rows]; None: the first ones, in order


def attend_rows(query: Tensor, keys: Tensor, values: Tensor, rows: Rows, scale: float) -> Tensor:
    """Attention of a batch.

    Args:
        query: of the whole pass, [num_tokens, num_heads, head_dim]
        keys, values: [num_slots, num_kv_heads, max_length, head_dim]

    Returns:
        the outputs of `rows.tokens`, [num_tokens, num_heads, head_dim]
    """
    num_heads, head_dim, num_kv_heads = query.shape[1], query.shape[2], keys.shape[1]
    groups = num_heads // num_kv_heads
    keys, values = _live_part(keys, rows), _live_part(values, rows)
    # The query heads that share a key-value head are rows of it; see query_blocks.py.
    folded = query[rows.sources].view(rows.num_rows, rows.width, num_kv_heads, groups, head_dim)
    output = scaled_dot_product_attention(
        folded.permute(0, 2, 3, 1, 4).reshape(rows.num_rows, num_kv_heads, -1, head_dim),
        keys,
        values,
        attn_mask=rows.mask,
        scale=scale,
    )
    output = output.view(rows.num_rows, num_kv_heads, groups, rows.width, head_dim)
    return output.permute(0, 3, 1, 2, 4).reshape(-1, num_heads, head_dim)[rows.places]


def _live_part(stored: Tensor, rows: Rows) -> Tensor:
    """The storage that a batch attends to, [num_rows, num_kv_heads, length, head_dim]."""
    if rows.slots is not None:
        return stored[:, :, : rows.length].index_select(0, rows.slots)
    return stored[rows.first_slot : rows.first_slot + rows.num_rows, :, : rows.length]


def hidden_from(queries: Tensor, places: Tensor, window: int | None) -> Tensor:
    """Which keys are masked for which queries, by causality and, if any, a sliding window."""
    hidden = places > queries
    return hidden if window is None else hidden | (places <= queries - window)


class ChunkBatch:
    """Chunks whose attention is one operation. Has a row for each slot from the first to the last.

    Args:
        chunks: all chunks of the pass.
        members: indices of those in the batch.
        tokens_of: the indices in the pass of each chunk's tokens.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        members: Sequence[int],
        tokens_of: Sequence[slice],
        device: torch.device,
    ) -> None:
        self._chunks = [chunks[i] for i in members]
        self._slots = _slot_range(self._chunks)
        self._width = max(len(chunk.token_ids) for chunk in self._chunks)
        self._length = max(chunk.end for chunk in self._chunks)
        self._rows: dict[tuple[int, int | None], Rows] = {}
        sources = torch.zeros(len(self._slots), self._width, dtype=torch.long)
        tokens: list[int] = []
        places: list[int] = []
        for index, chunk in zip(members, self._chunks, strict=True):
            row, num_tokens = chunk.slot - self._slots.start, len(chunk.token_ids)
            own = range(tokens_of[index].start, tokens_of[index].stop)
            sources[row, :num_tokens] = torch.tensor(own)
            tokens.extend(own)
            places.extend(range(row * self._width, row * self._width + num_tokens))
        self._sources = sources.flatten().to(device)
        self._places = torch.tensor(places, device=device)
        self._tokens = torch.tensor(tokens, device=device)

    def rows(self, like: Tensor, groups: int, window: int | None) -> Rows:
        """Rows for layers with `groups` query heads per key-value head, and a sliding window."""
        key = (groups, window)
        if key not in self._rows:
            self._rows[key] = Rows(
                self._sources,
                self._places,
                self._tokens,
                self._slots.start,
                len(self._slots),
                self._width,
                self._length,
                self._mask(like, groups, window),
            )
        return self._rows[key]

    def _mask(self, like: Tensor, groups: int, window: int | None) -> Tensor:
        """Additive, [num_rows, 1, groups * width, length]; rows of no chunk see everything."""
        hidden = torch.zeros(len(self._slots), self._width, self._length, dtype=torch.bool)
        places = torch.arange(self._length)
        for chunk in self._chunks:
            queries = torch.arange(chunk.start, chunk.end)[:, None]
            own = hidden[chunk.slot - self._slots.start, : len(chunk.token_ids)]
            own |= hidden_from(queries, places, window)
        mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
        return mask.repeat(1, groups, 1)[:, None].to(like.device)


def batches_of(chunks: Sequence[Chunk]) -> list[list[int]]:
    """Indices of the chunks of each batch; every chunk is in one."""
    together = batch_of(chunks)
    alone = [[index] for index in range(len(chunks)) if index not in together]
    return [together, *alone] if together else alone


def batch_of(chunks: Sequence[Chunk]) -> list[int]:
    """Indices of the chunks that should be one batch; none or at least two."""
    members = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) <= _LONGEST_CHUNK]
    # The longest sequences leave first, since all rows of the batch have their length.
    members.sort(key=lambda i: chunks[i].end)
    while len(members) > 1:
        batch = [chunks[i] for i in members]
        counting = sum(chunk.end * len(chunk.token_ids) for chunk in batch)
        width = max(len(chunk.token_ids) for chunk in batch)
        if len(_slot_range(batch)) * width * batch[-1].end <= _MOST_PADDING * counting:
            return members
        members.pop()
    return []


def _slot_range(chunks: Sequence[Chunk]) -> range:
    slots = [chunk.slot for chunk in chunks]
    return range(min(slots), max(slots) + 1)
