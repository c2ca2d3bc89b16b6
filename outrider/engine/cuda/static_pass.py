"""A pass of fixed shape: a row for each chunk, all rows of the same width."""

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.engine.attention.chunk_batch import Rows, hidden_from
from outrider.engine.attention.forward_pass import AttentionLayer, ForwardPass
from outrider.engine.attention.rope import Rotation
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk

SHORTEST_LENGTH = 256
_MOST_ROWS = 64
_LARGEST_WIDTH = 16


class Shape(NamedTuple):
    """A shape, of powers of two, to which passes are padded."""

    num_rows: int
    width: int
    length: int  # of the part of the slots that is attended to

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.width


class StaticPass(ForwardPass):
    """A pass of a shape, with a row for each chunk.

    Created while a graph is recorded, so that the graph includes everything it computes.

    Args:
        positions: [num_rows * width], in the rows' sequences
        slots: [num_rows]
        kernels: the module of attention kernels; None: torch's operators.
    """

    def __init__(
        self,
        shape: Shape,
        positions: Tensor,
        slots: Tensor,
        cache: SlotCache,
        kernels: ModuleType | None = None,
    ) -> None:
        slots_of_tokens = slots.repeat_interleave(shape.width)
        super().__init__(cache, positions, batches=(self,), slots=slots_of_tokens)
        self._shape = shape
        self._slots = slots
        self._kernels = kernels
        self._rows: dict[tuple[int, int | None], Rows] = {}

    def attend(
        self,
        layer: AttentionLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotation: Rotation | None = None,
        output: Tensor | None = None,
    ) -> Tensor:
        """See `ForwardPass.attend`."""
        if self._kernels is None:
            return super().attend(layer, query, key, value, rotation, output)
        stored = self.cache.storage(layer.number, key, value)
        return self._kernels.attend(  # type: ignore[no-any-return]
            query, key, value, *stored, self._slots, self.positions, layer.scale,
            self._shape.length, layer.window, rotation, output,
        )  # fmt: skip

    def rows(self, like: Tensor, groups: int, window: int | None) -> Rows:
        """Rows for layers with `groups` query heads per key-value head, and a sliding window."""
        key = (groups, window)
        if key not in self._rows:
            num_rows, width, length = self._shape
            all_tokens = torch.arange(num_rows * width, device=like.device)
            mask = self._mask(like, groups, window)
            self._rows[key] = Rows(
                all_tokens, all_tokens, all_tokens, 0, num_rows, width, length, mask, self._slots
            )
        return self._rows[key]

    def _mask(self, like: Tensor, groups: int, window: int | None) -> Tensor:
        """Additive, [num_rows, 1, groups * width, length]."""
        num_rows, width, length = self._shape
        queries = self.positions.view(num_rows, width, 1)
        places = torch.arange(length, device=like.device)
        hidden = hidden_from(queries, places, window)
        mask = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        return mask.repeat(1, groups, 1)[:, None]


def shape_of(chunks: Sequence[Chunk], max_length: int, num_steps: int = 1) -> Shape | None:
    """The smallest shape that these chunks fit; None if there is none.

    Args:
        num_steps: the number of passes; each adds one token to every slot.
    """
    num_rows = _power_of_two(len(chunks))
    width = _power_of_two(max(len(chunk.token_ids) for chunk in chunks))
    # Padding behind a chunk's tokens is written to its slot, where it does not count.
    end = max(chunk.start for chunk in chunks) + width
    end = max(end, max(chunk.end for chunk in chunks) + num_steps - 1)
    if num_rows > _MOST_ROWS or width > _LARGEST_WIDTH or end > max_length:
        return None
    return Shape(num_rows, width, min(max_length, max(SHORTEST_LENGTH, _power_of_two(end))))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def kernels_for(device: torch.device) -> ModuleType | None:
    """The module of Triton kernels; None without a GPU or Triton."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("outrider.engine.cuda.kernels")
