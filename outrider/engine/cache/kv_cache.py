"""The slot cache: the KV cache, with one slot for each sequence.

The caller keeps track of the length of the sequence in each slot. To roll back rejected tokens, it
continues with a smaller length: entries after it are masked, and overwritten by the next tokens.
"""

import mmap
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from outrider.engine.cache.pages import IS_SUPPORTED, Pages
from outrider.engine.chunk import Chunk
from outrider.engine.shapes import ANY_SHAPES, AttentionShapes


class SlotCache:
    """Keys and values of `num_slots` sequences of up to `max_length` tokens, for each layer.

    The first write of a layer determines the shape of its storage, since model families differ in
    heads and head size, some even between layers. So a small cache learns the shapes, and
    `resized` creates the cache for serving. On CPUs with Linux, that uses memory only where tokens
    have been written, until `give_back`; elsewhere all of it immediately.

    Args:
        shapes: kernel shapes of attention, whose padding may exceed `max_length`.
    """

    def __init__(
        self, num_slots: int, max_length: int, shapes: AttentionShapes = ANY_SHAPES
    ) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self._shapes = shapes
        self._stored_length = shapes.attended_length(max_length)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        # Keys and values, each [number, num_slots, num_kv_heads, max_length, head_dim]: all of them
        # if they have one shape, so that copying a part of a slot is one operation.
        self._blocks: list[Tensor] = []
        self._pages: list[Pages] = []  # of the blocks that have some

    @property
    def num_layers(self) -> int:
        """The number of layers that have written so far."""
        return len(self._layers)

    @property
    def head_shapes(self) -> set[tuple[int, int]]:
        """The numbers of key-value heads and their sizes, of layers that have written so far."""
        return {(keys.shape[1], keys.shape[3]) for keys, _ in self._layers.values()}

    @property
    def num_bytes(self) -> int:
        """The size of the whole cache, of which not all needs to be in memory, see `give_back`."""
        return sum(k.nbytes + v.nbytes for k, v in self._layers.values())

    @property
    def num_tokens(self) -> int:
        """Tokens that have room in all slots."""
        return self.num_slots * self.max_length

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token in a slot, over all layers."""
        return self.num_bytes // (self.num_slots * self._stored_length)

    def slot_bytes(self, max_length: int) -> int:
        """Bytes per slot of `max_length` tokens, over all layers."""
        return self._shapes.attended_length(max_length) * self.bytes_per_token

    def bytes_of(self, num_tokens: int, num_slots: int, max_length: int) -> int:
        """The most that these tokens take in slots for `max_length` tokens each."""
        # Each head's storage may end in the middle of a page.
        heads = sum(block.shape[0] * block.shape[2] for block in self._blocks)
        in_pages = num_tokens * self.bytes_per_token + num_slots * heads * mmap.PAGESIZE
        return min(in_pages, num_slots * self.slot_bytes(max_length))

    def resized(self, num_slots: int, max_length: int) -> "SlotCache":
        """An empty cache with the same layers."""
        cache = SlotCache(num_slots, max_length, self._shapes)
        examples = [(keys[:, :, 0], values[:, :, 0]) for keys, values in self._layers.values()]
        if len({each.shape for pair in examples for each in pair}) == 1:
            block = cache._block(2 * len(examples), examples[0][0])
            layers = list(zip(block[::2], block[1::2], strict=True))
        else:
            layers = [
                (cache._block(1, key)[0], cache._block(1, value)[0]) for key, value in examples
            ]
        cache._layers = dict(zip(self._layers, layers, strict=True))
        return cache

    def storage(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, each [num_slots, num_kv_heads, max_length, head_dim].

        Args:
            key, value: [any, num_kv_heads, head_dim], what the layer writes.
        """
        if layer not in self._layers:
            self._layers[layer] = (self._block(1, key)[0], self._block(1, value)[0])
        return self._layers[layer]

    def storages(self, num_layers: int, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The keys, and the values, of the first layers, which all write tensors like `like`."""
        pairs = (self.storage(layer, like, like) for layer in range(num_layers))
        keys, values = zip(*pairs, strict=True)
        return list(keys), list(values)

    def copy(self, source: int, slot: int, begin: int, end: int) -> None:
        """Copies the tokens [begin, end) of slot `source` to `slot`."""
        for block in self._blocks:
            block[:, slot, :, begin:end] = block[:, source, :, begin:end]

    def are_finite(self, ranges: Sequence[tuple[int, int, int]]) -> list[bool]:
        """For each range (slot, begin, end), whether the last layer's entries are finite."""
        # A sum is NaN or infinite if any of its terms is.
        sums = [
            stored[slot, :, begin:end].sum(dtype=torch.float32)
            for slot, begin, end in ranges
            for stored in self._layers[max(self._layers)]
        ]
        return torch.stack(sums).view(-1, 2).isfinite().all(dim=1).tolist()

    def clear(self, slot: int, begin: int, end: int) -> None:
        """Sets the tokens [begin, end) of a slot to zero."""
        for block in self._blocks:
            block[:, slot, :, begin:end] = 0

    @property
    def gives_back(self) -> bool:
        """Whether `give_back` gives anything back."""
        return bool(self._pages)

    def give_back(self, slot: int, begin: int = 0) -> Iterator[None]:
        """Frees the memory of a slot's tokens from `begin` on, where that is possible.

        These entries are then zero, or unchanged. Works in portions of a tenth of a millisecond,
        and yields after each.
        """
        for pages in self._pages:
            for stored in pages.tensor:
                if begin == 0:
                    pages.give_back(stored[slot])
                else:
                    for head in stored[slot]:
                        pages.give_back(head[begin:])
                yield

    def copy_for(self, chunks: Sequence[Chunk]) -> None:
        """Makes the copies that the chunks of a pass need."""
        for chunk in chunks:
            if chunk.copy_from is not None:
                source, begin = chunk.copy_from
                self.copy(source, chunk.slot, begin, chunk.start)

    def _block(self, number: int, like: Tensor) -> Tensor:
        """Zeros, since masked values are multiplied, too."""
        _, num_kv_heads, head_dim = like.shape
        shape = (number, self.num_slots, num_kv_heads, self._stored_length, head_dim)
        if IS_SUPPORTED and like.device.type == "cpu":
            self._pages.append(Pages(shape, like.dtype))
            block = self._pages[-1].tensor
        else:
            block = like.new_zeros(shape)
        self._blocks.append(block)
        return block
