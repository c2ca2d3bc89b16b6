"""The slot cache: one row of keys and values per session.

A slot holds one sequence. What counts of it is a length that the caller keeps,
so rolling back rejected tokens is setting a smaller length: stale entries
behind it are never read, and the next tokens overwrite them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class SlotCache:
    """Keys and values of `num_slots` sequences of up to `max_length` tokens, for each layer.

    A layer's storage is allocated when the layer first writes, in the shape
    that it writes: families differ in heads and head size, some even by layer.
    """

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_layers(self) -> int:
        """Layers that have written."""
        return len(self._layers)

    @property
    def num_bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self._layers.values())

    def write(
        self, layer: int, key: Tensor, value: Tensor, places: Sequence[tuple[int, int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Stores one pass's keys and values and returns the layer's whole storage.

        Args:
            key, value: [num_kv_heads, num_tokens, head_dim]
            places: slot, start and end of each chunk of tokens, in their order.

        Returns:
            keys and values, each [num_slots, num_kv_heads, max_length, head_dim].
        """
        if layer not in self._layers:
            self._layers[layer] = (self._storage(key), self._storage(value))
        keys, values = self._layers[layer]
        offset = 0
        for slot, start, end in places:
            rows = slice(offset, offset + end - start)
            keys[slot, :, start:end] = key[:, rows]
            values[slot, :, start:end] = value[:, rows]
            offset = rows.stop
        return keys, values

    def copy(self, source: int, slot: int, begin: int, end: int) -> None:
        """Copies what slot `source` holds of the tokens [begin, end) to `slot`."""
        for keys, values in self._layers.values():
            keys[slot, :, begin:end] = keys[source, :, begin:end]
            values[slot, :, begin:end] = values[source, :, begin:end]

    def _storage(self, like: Tensor) -> Tensor:
        num_kv_heads, _, head_dim = like.shape
        return like.new_empty(self.num_slots, num_kv_heads, self.max_length, head_dim)
