"""The slot cache: one row of keys and values per session.

A slot holds one sequence, whose length the caller keeps. Rolling back rejected tokens
is setting a smaller length: stale entries behind it are masked, and the next tokens
overwrite them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.engine.chunk import Chunk
from outrider.engine.shapes import ANY_SHAPES, AttentionShapes


class SlotCache:
    """Keys and values of `num_slots` sequences of up to `max_length` tokens, for each layer.

    A layer's storage has the shape that the layer first writes: families differ in
    heads and head size, some even by layer. So a small cache learns the shapes, and
    `resized` allocates the cache for serving, all at once.

    Args:
        shapes: kernel shapes of attention, which may exceed `max_length`.
    """

    def __init__(
        self, num_slots: int, max_length: int, shapes: AttentionShapes = ANY_SHAPES
    ) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self._shapes = shapes
        self._stored_length = shapes.attended_length(max_length)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        # All layers' keys and values, if they have one shape, so that copying a part of a slot is
        # one operation: [num_layers, 2, num_slots, num_kv_heads, max_length, head_dim]
        self._all: Tensor | None = None

    @property
    def num_layers(self) -> int:
        """The number of layers that have written."""
        return len(self._layers)

    @property
    def head_shapes(self) -> set[tuple[int, int]]:
        """The number of key-value heads and the size of one, of layers that have written."""
        return {(keys.shape[1], keys.shape[3]) for keys, _ in self._layers.values()}

    @property
    def num_bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self._layers.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token in a slot, in all layers."""
        return self.num_bytes // (self.num_slots * self._stored_length)

    def slot_bytes(self, max_length: int) -> int:
        """Bytes of a slot for `max_length` tokens."""
        return self._shapes.attended_length(max_length) * self.bytes_per_token

    def resized(self, num_slots: int, max_length: int) -> "SlotCache":
        """An empty cache with the same layers. Its memory is taken now, not at first use."""
        cache = SlotCache(num_slots, max_length, self._shapes)
        examples = [(keys[:, :, 0], values[:, :, 0]) for keys, values in self._layers.values()]
        if len({each.shape for pair in examples for each in pair}) == 1:
            cache._all = cache._zeros(examples[0][0], len(examples), 2)
            layers = [(keys, values) for keys, values in cache._all]
        else:
            layers = [(cache._zeros(key), cache._zeros(value)) for key, value in examples]
        cache._layers = dict(zip(self._layers, layers, strict=True))
        return cache

    def storage(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, each [num_slots, num_kv_heads, max_length, head_dim].

        Args:
            key, value: [any, num_kv_heads, head_dim], as the layer writes them.
        """
        if layer not in self._layers:
            self._layers[layer] = (self._zeros(key), self._zeros(value))
        return self._layers[layer]

    def storages(self, num_layers: int, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The keys, and the values, of the first layers, all of which write what is like `like`."""
        pairs = (self.storage(layer, like, like) for layer in range(num_layers))
        keys, values = zip(*pairs, strict=True)
        return list(keys), list(values)

    def copy(self, source: int, slot: int, begin: int, end: int) -> None:
        """Copies the tokens [begin, end) of slot `source` to `slot`."""
        if self._all is not None:
            self._all[:, :, slot, :, begin:end] = self._all[:, :, source, :, begin:end]
            return
        for keys, values in self._layers.values():
            keys[slot, :, begin:end] = keys[source, :, begin:end]
            values[slot, :, begin:end] = values[source, :, begin:end]

    def are_finite(self, ranges: Sequence[tuple[int, int, int]]) -> list[bool]:
        """Whether the last layer is finite in each range: a slot, begin and end."""
        # A sum is NaN or infinite if any of its terms is.
        sums = [self._latest(*each).sum(dtype=torch.float32) for each in ranges]
        return torch.stack(sums).isfinite().tolist()

    def clear(self, slot: int, begin: int, end: int) -> None:
        """Sets the tokens [begin, end) of a slot to zero."""
        for keys, values in self._layers.values():
            keys[slot, :, begin:end] = 0
            values[slot, :, begin:end] = 0

    def _latest(self, slot: int, begin: int, end: int) -> Tensor:
        """The last layer's keys and values, [2, num_kv_heads, end - begin, head_dim]."""
        if self._all is not None:
            return self._all[-1, :, slot, :, begin:end]
        keys, values = self._layers[max(self._layers)]
        return torch.stack((keys[slot, :, begin:end], values[slot, :, begin:end]))

    def copy_for(self, chunks: Sequence[Chunk]) -> None:
        """Makes the copies that chunks need before a pass."""
        for chunk in chunks:
            if chunk.copy_from is not None:
                source, begin = chunk.copy_from
                self.copy(source, chunk.slot, begin, chunk.start)

    def _zeros(self, like: Tensor, *outer: int) -> Tensor:
        _, num_kv_heads, head_dim = like.shape
        # Zeros, since masked values are multiplied, too.
        return like.new_zeros(*outer, self.num_slots, num_kv_heads, self._stored_length, head_dim)
