"""Short passes of fixed shapes, recorded once and replayed: CUDA graphs.

A short pass on a GPU is made of launches: a layer is a dozen kernels of microseconds,
and Python needs longer to ask for one than it takes. A graph asks for all at once, but
repeats just what was recorded, with the same shapes and addresses. So a pass is padded
to one of a few shapes, and what differs from one pass to the next (tokens, positions,
slots) is in tensors of fixed places. What fits no shape is not for here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from outrider.engine.attention import Batch, OnlyChunk
from outrider.engine.chunk import Chunk
from outrider.engine.chunk_batch import Rows, hidden_from
from outrider.engine.kv_cache import Places, SlotCache

log = logging.getLogger(__name__)

_MOST_ROWS = 32
_LARGEST_WIDTH = 16
_SHORTEST_LENGTH = 256
# Kernels choose their ways in the first passes, and allocate; a recording must not.
_NUM_WARM_UPS = 2


class Shape(NamedTuple):
    """What passes are padded to, powers of two: as many chunks, each of so many tokens."""

    num_rows: int
    width: int
    length: int  # of the part of the slots that is attended to

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.width


class StaticPass:
    """To networks what `attention.Pass` is; of a shape, with a row for each chunk.

    Made while a graph is recorded: all that it computes is a part of that.

    Args:
        positions: [num_rows * width], in the rows' sequences
        slots: [num_rows]
    """

    def __init__(self, shape: Shape, positions: Tensor, slots: Tensor, cache: SlotCache) -> None:
        self.cache = cache
        self.positions = positions
        self.windows: set[int] = set()
        self.alone: OnlyChunk | None = None
        self.places: Places = (slots.repeat_interleave(shape.width), positions)
        self.batches: Sequence[Batch] = (self,)
        self._shape = shape
        self._slots = slots
        self._rows: dict[tuple[int, int | None], Rows] = {}

    def rows(self, like: Tensor, groups: int, window: int | None) -> Rows:
        """For layers with so many query heads to a key-value head, and such a sliding window."""
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


class Graph(Protocol):
    """Something recorded that runs again and again."""

    def replay(self) -> Tensor:
        """Its output, in the same place every time."""
        ...


Record = Callable[[Callable[[], Tensor]], Graph]
"""Makes a graph of a function that reads and writes fixed places only."""


class CudaRecorder:
    """Records kernels. The graphs of an engine, which run one at a time, share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            # Libraries make their handles on the first use of a stream, and may not in a recording.
            self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Graph:
        """Raises RuntimeError if `run` cannot be recorded."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_NUM_WARM_UPS):
                    run()
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process go on using the device.
            how: Any = {"pool": self._pool, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, stream=self._stream, **how):
                output = run()
            torch.cuda.current_stream().wait_stream(self._stream)
        return CudaGraph(graph, output)


class CudaGraph(NamedTuple):
    """A recording, and where its output is."""

    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.output


class StaticPasses:
    """The graphs of one engine, recorded as their shapes come up."""

    def __init__(
        self,
        network: nn.Module,
        cache: SlotCache,
        device: torch.device,
        record: Record,
    ) -> None:
        self._network = network
        self._cache = cache
        self._device = device
        self._record = record
        # By shape: where its inputs are, and the graph; None if it cannot be recorded.
        self._graphs: dict[Shape, tuple[Tensor, Graph] | None] = {}

    @property
    def num_shapes(self) -> int:
        """Shapes that have come up."""
        return len(self._graphs)

    @property
    def lengths(self) -> list[int]:
        """Of shapes, ascending."""
        lengths = [_SHORTEST_LENGTH]
        while lengths[-1] < self._cache.max_length:
            lengths.append(2 * lengths[-1])
        return [min(length, self._cache.max_length) for length in lengths]

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor] | None:
        """Each chunk's logits, [num_logits, num_ids]; None if no graph fits."""
        shape = shape_of(chunks, self._cache.max_length)
        if shape is None:
            return None
        inputs = torch.tensor(_inputs(chunks, shape), device=self._device)
        if shape not in self._graphs:
            self._graphs[shape] = self._recorded(shape, inputs)
        if (recorded := self._graphs[shape]) is None:
            return None
        place, graph = recorded
        if place is not inputs:
            place.copy_(inputs)
        # [num_rows * width, num_ids]; the next replay writes to the same place
        logits = graph.replay().clone()
        ends = (row * shape.width + len(chunk.token_ids) for row, chunk in enumerate(chunks))
        return [
            logits[end - chunk.num_logits : end] for end, chunk in zip(ends, chunks, strict=True)
        ]

    def _recorded(self, shape: Shape, inputs: Tensor) -> tuple[Tensor, Graph] | None:
        try:
            return inputs, self._record(lambda: self._run(shape, inputs))
        except RuntimeError as error:  # out of memory, or an operation that waits for the device
            log.warning("no graph of %s: %s", shape, error)
            return None

    def _run(self, shape: Shape, inputs: Tensor) -> Tensor:
        num_tokens = shape.num_tokens
        token_ids, positions, slots = inputs.split([num_tokens, num_tokens, shape.num_rows])
        forward_pass = StaticPass(shape, positions, slots, self._cache)
        all_rows = torch.arange(num_tokens, device=self._device)
        logits: Tensor = self._network(token_ids, forward_pass, all_rows)
        return logits


def shape_of(chunks: Sequence[Chunk], max_length: int) -> Shape | None:
    """The smallest shape that holds these chunks; None if there is none."""
    num_rows = _power_of_two(len(chunks))
    width = _power_of_two(max(len(chunk.token_ids) for chunk in chunks))
    # Padding behind a chunk's tokens is written to its slot, where nothing counts.
    end = max(chunk.start for chunk in chunks) + width
    if num_rows > _MOST_ROWS or width > _LARGEST_WIDTH or end > max_length:
        return None
    return Shape(num_rows, width, min(max_length, max(_SHORTEST_LENGTH, _power_of_two(end))))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _inputs(chunks: Sequence[Chunk], shape: Shape) -> list[int]:
    """Token ids, positions and slots, end to end. Rows that are left over repeat the first."""
    rows = [*chunks, *[chunks[0]] * (shape.num_rows - len(chunks))]
    token_ids: list[int] = []
    positions: list[int] = []
    for chunk in rows:
        token_ids.extend(chunk.token_ids)
        token_ids.extend([0] * (shape.width - len(chunk.token_ids)))
        positions.extend(range(chunk.start, chunk.start + shape.width))
    return [*token_ids, *positions, *(chunk.slot for chunk in rows)]
