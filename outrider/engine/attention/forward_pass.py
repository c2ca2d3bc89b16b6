"""Attention over the slot cache, for a packed ragged batch.

A pass packs chunks of several sequences into one row of tokens without padding. Every layer stores
the pass's keys and values in the slot cache, and each chunk attends to its own slot, up to its own
length. The function is registered as an attention implementation of transformers, so that its
model classes can be used as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from outrider.engine.attention.chunk_batch import ChunkBatch, Rows, attend_rows, batches_of
from outrider.engine.attention.query_blocks import QueryBlocks, attend_blocks
from outrider.engine.attention.rope import Rotation
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk, captured_layers, text_lengths
from outrider.engine.shapes import AttentionShapes

IMPLEMENTATION = "outrider"

# Keyword arguments of layers that change nothing here. Others (softcap, s_aux, block_indices) ask
# for other kinds of attention.
_HARMLESS = ("dropout", "position_ids", "cache_position", "is_causal", "output_hidden_states")


class Batch(Protocol):
    """Chunks whose attention is one operation."""

    def rows(self, like: Tensor, groups: int, window: int | None) -> Rows:
        """Rows for layers with `groups` query heads per key-value head, and a sliding window."""
        ...


class AttentionLayer(NamedTuple):
    """The parameters of a layer's attention."""

    number: int
    scale: float
    window: int | None = None


class ForwardPass:
    """A pass, as layers see it.

    Args:
        positions: [num_tokens], of the pass's tokens in their sequences
        blocks: the chunks whose attention is computed one by one; the others are in `batches`
        slots: [num_tokens], the slots of the tokens of `batches`
    """

    def __init__(
        self,
        cache: SlotCache,
        positions: Tensor,
        blocks: QueryBlocks | None = None,
        batches: Sequence[Batch] = (),
        slots: Tensor | None = None,
    ) -> None:
        self.cache = cache
        self.positions = positions
        self.chunks: Sequence[Chunk] = ()
        self.blocks = blocks
        self.batches = batches
        self.slots = slots
        self.windows: set[int] = set()
        """Sliding windows that layers have passed to attention."""
        self.captured_layers: list[int] = []
        """The layers whose hidden states the network stores in `hidden_states`."""
        self.hidden_states: dict[int, Tensor] = {}  # by layer, [num_tokens, hidden_size]

    def attend(
        self,
        layer: AttentionLayer,
        query: Tensor,  # [num_tokens, num_heads, head_dim]
        key: Tensor,  # [num_tokens, num_kv_heads, head_dim]
        value: Tensor,
        rotation: Rotation | None = None,
        output: Tensor | None = None,
    ) -> Tensor:
        """Stores keys and values, and computes attention: [num_tokens, num_heads, head_dim].

        Args:
            rotation: applied to queries and keys first.
            output: the tensor for the result, which may be `query`.
        """
        if rotation is not None:
            query, key = rotation.rotate(query), rotation.rotate(key)
        if layer.window is not None:
            self.windows.add(layer.window)
        keys, values = self.cache.storage(layer.number, key, value)
        groups = query.shape[1] // key.shape[1]
        if self.blocks is not None:
            blocks = self.blocks.of(query, groups, layer.window)
            attended = attend_blocks(query, key, value, keys, values, blocks, layer.scale)
        else:
            assert self.slots is not None
            # Indexing puts the indexed dimensions first.
            keys[self.slots, :, self.positions] = key
            values[self.slots, :, self.positions] = value
            attended = torch.empty_like(query, memory_format=torch.contiguous_format)
            for batch in self.batches:
                rows = batch.rows(query, groups, layer.window)
                attended[rows.tokens] = attend_rows(query, keys, values, rows, layer.scale)
        return attended if output is None else output.copy_(attended)


class Pass(ForwardPass):
    """One forward pass: its chunks, packed.

    Args:
        together: compute the attention of short chunks in batches, since calls are expensive;
            otherwise chunk by chunk.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        cache: SlotCache,
        device: torch.device,
        shapes: AttentionShapes,
        together: bool,
    ) -> None:
        positions = torch.tensor(
            [position for c in chunks for position in range(c.start, c.end)], device=device
        )  # [num_tokens]
        if len(chunks) == 1 or not together:
            super().__init__(cache, positions, QueryBlocks(chunks, shapes))
            self.chunks = chunks
            self.captured_layers = captured_layers(chunks)
            return
        slots = torch.tensor([c.slot for c in chunks for _ in c.token_ids], device=device)
        ends = list(accumulate(len(c.token_ids) for c in chunks))
        rows = [slice(end - len(c.token_ids), end) for c, end in zip(chunks, ends, strict=True)]
        batches = [ChunkBatch(chunks, members, rows, device) for members in batches_of(chunks)]
        super().__init__(cache, positions, batches=batches, slots=slots)
        self.chunks = chunks


_current: ContextVar[ForwardPass] = ContextVar("current_pass")


def current_text_lengths() -> list[int]:
    """`text_lengths` of the current pass."""
    return text_lengths(_current.get().chunks)


@contextmanager
def attending(forward_pass: ForwardPass) -> Iterator[None]:
    """Context manager that makes `forward_pass` the current pass."""
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
    """Attention with the interface of transformers. Returns [1, num_tokens, num_heads, head_dim].

    Raises:
        NotImplementedError: the layer passes an argument that is not supported.
    """
    # transformers makes no mask for this attention, so a mask comes from the layer itself.
    for name, asked in {"attention_mask": attention_mask, **kwargs}.items():
        if name not in _HARMLESS and asked is not None and asked is not False:
            raise NotImplementedError(f"attention with {name}")
    number = module.layer_idx
    assert isinstance(number, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = AttentionLayer(number, scale, sliding_window)
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    output = _current.get().attend(layer, query, key, value)
    return output.unsqueeze(0).contiguous(), None  # some layers rely on `contiguous`


def register() -> None:
    """Registers `slot_attention` with transformers, unless something is registered already."""
    # transformers' modelling code takes 90 MB, which networks without its modules save.
    from transformers import AttentionInterface

    if IMPLEMENTATION not in AttentionInterface().valid_keys():
        AttentionInterface.register(IMPLEMENTATION, slot_attention)
