"""Attention chunk by chunk, each to its own slot.

Chunks attend in pieces of a few queries, which see no more of the slot than they need to,
and in shapes that give each query the same bits in every pass (`batch_invariance.py`).
"""
# Without postponed annotations: TorchScript reads those of `Piece`.

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from outrider.engine.batch_invariance import attended_length, attending_rows, queries_at_once
from outrider.engine.chunk import Chunk
from outrider.engine.chunk_batch import hidden_from


class Piece(NamedTuple):
    """Consecutive tokens of a chunk, which attend together."""

    slot: int
    start: int  # of the first in the slot
    begin: int  # of the first in the pass
    end: int
    length: int  # of the part of the slot that is attended to
    mask: Tensor  # additive, [num_rows, length], groups * (end - begin) rows or more


def attend_pieces(
    query: Tensor,  # [num_tokens, num_heads, head_dim]
    key: Tensor,  # [num_tokens, num_kv_heads, head_dim]
    value: Tensor,
    keys: Tensor,  # [num_slots, num_kv_heads, max_length, head_dim]
    values: Tensor,
    pieces: list[Piece],
    scale: float,
) -> Tensor:
    """Stores keys and values, and attends: [num_tokens, num_heads, head_dim]. For TorchScript, too.

    The query heads that share a key-value head are folded into rows, which spares
    copying keys and values once for each of them (`benchmarks/attention.py`).
    """
    num_heads, head_dim = query.shape[1], query.shape[2]
    outputs: list[Tensor] = []
    for piece in pieces:
        begin, end, slot = piece.begin, piece.end, piece.slot
        stop = piece.start + end - begin
        keys[slot, :, piece.start : stop] = key[begin:end].transpose(0, 1)
        values[slot, :, piece.start : stop] = value[begin:end].transpose(0, 1)
        # [1, num_kv_heads, groups * num_queries, head_dim]
        rows = query[begin:end].transpose(0, 1).reshape(1, keys.shape[1], -1, head_dim)
        num_rows = rows.shape[2]
        if len(piece.mask) > num_rows:
            rows = pad(rows, [0, 0, 0, len(piece.mask) - num_rows])
        output = scaled_dot_product_attention(
            rows,
            keys[slot : slot + 1, :, : piece.length],
            values[slot : slot + 1, :, : piece.length],
            attn_mask=piece.mask,
            scale=scale,
        )
        output = output[:, :, :num_rows].reshape(num_heads, end - begin, head_dim)
        outputs.append(output.transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class Pieces:
    """The pieces of a pass, shared by all layers that attend alike."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks
        self._pieces: dict[tuple[int, int, int | None], list[Piece]] = {}

    def of(
        self, like: Tensor, groups: int, head_dim: int, window: int | None = None
    ) -> list[Piece]:
        """For layers with so many query heads to a key-value head, and such a sliding window.

        Args:
            like: has the masks' type and device.
        """
        kind = (groups, head_dim, window)
        if kind not in self._pieces:
            pieces: list[Piece] = []
            begin = 0
            for chunk in self._chunks:
                pieces.extend(_pieces_of(chunk, begin, like, *kind))
                begin += len(chunk.token_ids)
            self._pieces[kind] = pieces
        return self._pieces[kind]


def _pieces_of(
    chunk: Chunk, first: int, like: Tensor, groups: int, head_dim: int, window: int | None
) -> Iterator[Piece]:
    """Of a chunk whose tokens are those from `first` on in the pass."""
    device = like.device
    step = queries_at_once(len(chunk.token_ids), groups, device)
    for start in range(chunk.start, chunk.end, step):
        stop = min(start + step, chunk.end)
        begin = first + start - chunk.start
        length = attended_length(stop, device)
        num_rows = groups * (stop - start)
        mask = like.new_zeros(attending_rows(num_rows, head_dim, device), length)
        queries = torch.arange(start, stop, device=device)[:, None]
        hidden = hidden_from(queries, torch.arange(length, device=device), window)
        mask[:num_rows].masked_fill_(hidden.repeat(groups, 1), float("-inf"))
        yield Piece(chunk.slot, start, begin, begin + stop - start, length, mask)
