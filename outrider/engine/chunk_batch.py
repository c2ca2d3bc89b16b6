"""Attention of several short chunks in one operation.

A step of many sessions is many chunks of a few tokens. Attending to each slot by itself
costs calls, session by session and layer by layer; as one batch over the slots' storage
it costs arithmetic on places that do not count. Where those are few, the batch wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from outrider.engine.chunk import Chunk

# Longer chunks are arithmetic rather than calls.
_LONGEST_CHUNK = 16
# Places in the batch's storage for each that counts, at most.
_MOST_PADDING = 3.0


class ChunkBatch:
    """Chunks that attend together: a row of the batch for each slot from `first` to `last`.

    Args:
        chunks: all chunks of the pass.
        members: indices of those in the batch.
        tokens_of: where in the pass the tokens of each chunk are.
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
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        rows = torch.zeros(len(self._slots), self._width, dtype=torch.long)
        tokens: list[int] = []  # of the pass
        places: list[int] = []  # of those in the batch's rows
        for index, chunk in zip(members, self._chunks, strict=True):
            row, num_tokens = chunk.slot - self._slots.start, len(chunk.token_ids)
            own = range(tokens_of[index].start, tokens_of[index].stop)
            rows[row, :num_tokens] = torch.tensor(own)
            tokens.extend(own)
            places.extend(range(row * self._width, row * self._width + num_tokens))
        self._rows = rows.flatten().to(device)  # [num_rows * width], tokens of the pass
        self._places = torch.tensor(places, device=device)
        self.tokens = torch.tensor(tokens, device=device)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """The outputs of `tokens`, [num_heads, num_tokens, head_dim].

        Args:
            query: of the whole pass, [num_heads, num_tokens, head_dim]
            keys, values: [num_slots, num_kv_heads, max_length, head_dim]
        """
        num_heads, _, head_dim = query.shape
        num_kv_heads = keys.shape[1]
        groups, num_rows = num_heads // num_kv_heads, len(self._slots)
        shape = (num_kv_heads, groups, num_rows, self._width, head_dim)
        rows = query[:, self._rows].view(shape).permute(2, 0, 1, 3, 4)
        stored = slice(self._slots.start, self._slots.stop)
        output = scaled_dot_product_attention(
            rows.reshape(num_rows, num_kv_heads, groups * self._width, head_dim),
            keys[stored, :, : self._length],
            values[stored, :, : self._length],
            attn_mask=self._mask(query, groups, window),
            scale=scale,
        )
        output = output.view(num_rows, num_kv_heads, groups, self._width, head_dim)
        output = output.permute(1, 2, 0, 3, 4).reshape(num_heads, -1, head_dim)
        return output[:, self._places]

    def _mask(self, like: Tensor, groups: int, window: int | None) -> Tensor:
        """Additive, [num_rows, 1, groups * width, length]; rows of no chunk see everything."""
        key = (groups, window)
        if key not in self._masks:
            hidden = torch.zeros(len(self._slots), self._width, self._length, dtype=torch.bool)
            places = torch.arange(self._length)
            for chunk in self._chunks:
                queries = torch.arange(chunk.start, chunk.end)[:, None]
                own = hidden[chunk.slot - self._slots.start, : len(chunk.token_ids)]
                own |= places > queries
                if window is not None:
                    own |= places <= queries - window
            mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask.repeat(1, groups, 1)[:, None].to(like.device)
        return self._masks[key]


def batch_of(chunks: Sequence[Chunk]) -> list[int]:
    """Indices of the chunks that are worth attending together; none or at least two."""
    members = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) <= _LONGEST_CHUNK]
    # The longest sequences leave first: each row of the batch is as long as they are.
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
