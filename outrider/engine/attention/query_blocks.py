"""Attention chunk by chunk, each to its own slot.

It is computed in blocks of a few queries, which read no more of the slot than necessary, with
kernel shapes that give each query the same bits in every pass (`shapes.py`).
"""
# TorchScript reads the annotations of `QueryBlock`, so that none may be a string.

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from outrider.engine.attention.chunk_batch import hidden_from
from outrider.engine.chunk import Chunk
from outrider.engine.shapes import AttentionShapes


class QueryBlock(NamedTuple):
    """Consecutive tokens of a chunk whose attention is one call."""

    slot: int
    start: int  # of the first in the slot
    begin: int  # of the first in the pass
    end: int
    length: int  # of the part of the slot that is attended to
    mask: Tensor | None  # additive, [groups * (end - begin) or more, length]; None: all is visible


def attend_blocks(
    query: Tensor,  # [num_tokens, num_heads, head_dim]
    key: Tensor,  # [num_tokens, num_kv_heads, head_dim]
    value: Tensor,
    keys: Tensor,  # [num_slots, num_kv_heads, max_length, head_dim]
    values: Tensor,
    blocks: list[QueryBlock],
    scale: float,
) -> Tensor:
    """Stores keys and values, and computes attention: [num_tokens, num_heads, head_dim].

    The query heads that share a key-value head become rows of one call, which avoids copies of
    keys and values. Works in TorchScript, too.
    """
    num_heads, head_dim = query.shape[1], query.shape[2]
    outputs: list[Tensor] = []
    for block in blocks:
        begin, end, slot = block.begin, block.end, block.slot
        stop = block.start + end - begin
        keys[slot, :, block.start : stop] = key[begin:end].transpose(0, 1)
        values[slot, :, block.start : stop] = value[begin:end].transpose(0, 1)
        # [1, num_kv_heads, groups * num_queries, head_dim]
        rows = query[begin:end].transpose(0, 1).reshape(1, keys.shape[1], -1, head_dim)
        num_rows, mask = rows.shape[2], block.mask
        if mask is not None and len(mask) > num_rows:
            rows = pad(rows, [0, 0, 0, len(mask) - num_rows])
        output = scaled_dot_product_attention(
            rows,
            keys[slot : slot + 1, :, : block.length],
            values[slot : slot + 1, :, : block.length],
            attn_mask=mask,
            scale=scale,
        )
        output = output[:, :, :num_rows].reshape(num_heads, end - begin, head_dim)
        outputs.append(output.transpose(0, 1))
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat(outputs) if outputs else torch.empty_like(query)


class QueryBlocks:
    """The blocks of a pass, shared by all layers with the same kind of attention."""

    def __init__(self, chunks: Sequence[Chunk], shapes: AttentionShapes) -> None:
        self._chunks = chunks
        self._shapes = shapes
        self._blocks: dict[tuple[int, int | None], list[QueryBlock]] = {}

    @property
    def groups(self) -> set[int]:
        """The numbers of query heads per key-value head, of all layers so far."""
        return {groups for groups, _ in self._blocks}

    def of(self, like: Tensor, groups: int, window: int | None = None) -> list[QueryBlock]:
        """Blocks for layers with `groups` query heads per key-value head, and a sliding window.

        Args:
            like: a tensor with the type and device for masks.
        """
        kind = (groups, window)
        if kind not in self._blocks:
            blocks: list[QueryBlock] = []
            begin = 0
            for chunk in self._chunks:
                blocks.extend(self._of_chunk(chunk, begin, like, *kind))
                begin += len(chunk.token_ids)
            self._blocks[kind] = blocks
        return self._blocks[kind]

    def _of_chunk(
        self,
        chunk: Chunk,
        first: int,
        like: Tensor,
        groups: int,
        window: int | None,
    ) -> Iterator[QueryBlock]:
        """Blocks of a chunk whose tokens are those from index `first` on in the pass."""
        step = self._shapes.queries_at_once(len(chunk.token_ids), groups)
        for start in range(chunk.start, chunk.end, step):
            stop = min(start + step, chunk.end)
            num_rows = self._shapes.attending_rows(groups * (stop - start))
            length = self._shapes.attended_length(stop)
            sees_all = stop - start == 1 and (window is None or stop <= window)
            mask = None
            if not sees_all or self._shapes.are_chosen:
                mask = _causal_mask(range(start, stop), length, num_rows, groups, window, like)
            begin = first + start - chunk.start
            yield QueryBlock(chunk.slot, start, begin, begin + stop - start, length, mask)


def _causal_mask(
    queries: range, length: int, num_rows: int, groups: int, window: int | None, like: Tensor
) -> Tensor:
    """The additive mask, [num_rows, length], of queries at these places; padding rows see all."""
    places = torch.arange(queries.start, queries.stop, device=like.device)[:, None]
    hidden = hidden_from(places, torch.arange(length, device=like.device), window)
    mask = like.new_zeros(num_rows, length)
    mask[: groups * len(queries)].masked_fill_(hidden.repeat(groups, 1), float("-inf"))
    return mask
