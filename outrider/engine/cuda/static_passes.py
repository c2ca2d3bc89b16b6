"""Short passes of fixed shapes, recorded once and replayed: CUDA graphs.

The time of a short pass on a GPU is that of kernel launches: a layer consists of a dozen kernels of
a few microseconds each, which take Python longer to launch than they run. A graph launches all
kernels at once, but repeats exactly what was recorded, with the same shapes and addresses. So a
pass is padded to one of a few shapes, and what differs between passes (tokens, positions, slots) is
in tensors at fixed addresses. Passes that fit no shape run without graphs.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk
from outrider.engine.cuda import static_pass
from outrider.engine.cuda.static_pass import Shape, StaticPass, shape_of
from outrider.engine.device import is_gpu

log = logging.getLogger(__name__)

T = TypeVar("T")

# In the first passes kernels choose their algorithms and allocate, which a recording must not.
_NUM_WARM_UPS = 2


class Graph(Protocol):
    """A recording that can be replayed."""

    def replay(self) -> Tensor:
        """Runs it. The output is always at the same address."""
        ...


Record = Callable[[Callable[[], Tensor]], Graph]
"""Records a function that reads and writes fixed addresses only."""


class CudaRecorder:
    """Records CUDA graphs. An engine's graphs run one at a time, and share memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            # Libraries create handles on the first use of a stream, which a recording must not.
            self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        # A pool whose graphs have all been freed takes no others.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def __call__(self, run: Callable[[], Tensor]) -> Graph:
        """Raises RuntimeError if `run` cannot be recorded."""
        with torch.cuda.device(self._device):
            others = torch.cuda.current_stream()
            self._stream.wait_stream(others)
            try:
                # A separate context, since that of a failed recording leaves its stream current.
                with torch.cuda.stream(self._stream):
                    return self._record(run)
            finally:
                others.wait_stream(self._stream)

    def _record(self, run: Callable[[], Tensor]) -> Graph:
        for _ in range(_NUM_WARM_UPS):
            run()
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        # Other threads of the process continue to use the device.
        how: Any = {"pool": self._pool, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, stream=self._stream, **how):
                return CudaGraph(graph, run())
        except BaseException:
            failed, self._pool = self._pool, torch.cuda.graph_pool_handle()
            # torch before 2.12 would count later allocations as the recording's and never free
            # them (its issue 180395); later versions raise, since there is nothing to end.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), failed)
            raise


class CudaGraph(NamedTuple):
    """A recording and its output."""

    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.output


class StaticPasses:
    """The graphs of one engine. Each is recorded when its shape is first needed."""

    def __init__(
        self,
        network: nn.Module,
        cache: SlotCache,
        device: torch.device,
        record: Record,
        kernels: ModuleType | None = None,
    ) -> None:
        self.kernels = kernels
        self.network = network
        self.cache = cache
        self.device = device
        self.record = record
        # By shape: the tensor of its inputs, and the graph; None if it cannot be recorded.
        self._graphs: dict[Shape, tuple[Tensor, Graph] | None] = {}

    @property
    def num_shapes(self) -> int:
        """The number of shapes recorded so far."""
        return len(self._graphs)

    @property
    def lengths(self) -> list[int]:
        """The slot lengths of shapes, ascending."""
        lengths = [static_pass.SHORTEST_LENGTH]
        while lengths[-1] < self.cache.max_length:
            lengths.append(2 * lengths[-1])
        return [min(length, self.cache.max_length) for length in lengths]

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor] | None:
        """Each chunk's logits, [num_logits, num_ids]; None if no graph fits."""
        shape = shape_of(chunks, self.cache.max_length)
        if shape is None:
            return None
        rows = filled_up(chunks, shape.num_rows)
        slots = [chunk.slot for chunk in rows]
        values = [*tokens_and_positions(rows, shape.width), *slots]
        inputs = sendable(values, self.device)
        if shape not in self._graphs:
            new = inputs.to(self.device)
            self._graphs[shape] = self.recorded(shape, new, lambda: self._run(shape, new))
        if (recorded := self._graphs[shape]) is None:
            return None
        place, graph = recorded
        place.copy_(inputs, non_blocking=True)
        # [num_rows * width, num_ids]; the next replay overwrites it
        logits = graph.replay().clone()
        ends = (row * shape.width + len(chunk.token_ids) for row, chunk in enumerate(chunks))
        return [
            logits[end - chunk.num_logits : end] for end, chunk in zip(ends, chunks, strict=True)
        ]

    def recorded(
        self, shape: Shape, place: Tensor, run: Callable[[], Tensor]
    ) -> tuple[Tensor, Graph] | None:
        """`place` and a graph that reads it; None if it cannot be recorded."""
        try:
            return place, self.record(run)
        # Out of memory, an operation that waits for the device, a kernel that cannot be built.
        except Exception as error:
            log.warning("no graph of %s: %s", shape, error)
            return None

    def _run(self, shape: Shape, inputs: Tensor) -> Tensor:
        num_tokens = shape.num_tokens
        token_ids, positions, slots = inputs.split([num_tokens, num_tokens, shape.num_rows])
        forward_pass = StaticPass(shape, positions, slots, self.cache, self.kernels)
        all_rows = torch.arange(num_tokens, device=self.device)
        return self.network(token_ids, forward_pass, all_rows)  # type: ignore[no-any-return]


def sendable(values: list[int], device: torch.device) -> Tensor:
    """A tensor that can be copied to a device asynchronously."""
    return torch.tensor(values, pin_memory=is_gpu(device))


def filled_up(rows: Sequence[T], num_rows: int) -> list[T]:
    """Pads to `num_rows` rows with copies of the first row."""
    return [*rows, *[rows[0]] * (num_rows - len(rows))]


def tokens_and_positions(chunks: Sequence[Chunk], width: int) -> list[int]:
    """The token ids of chunks, padded to a width, then their positions."""
    token_ids: list[int] = []
    positions: list[int] = []
    for chunk in chunks:
        token_ids.extend(chunk.token_ids)
        token_ids.extend([0] * (width - len(chunk.token_ids)))
        positions.extend(range(chunk.start, chunk.start + width))
    return [*token_ids, *positions]
