"""GenerationService over gRPC."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from orchestrator.activity import Activity
from orchestrator.admission import DEFAULT_MAX_QUEUE_SECONDS, DEFAULT_MAX_QUEUED, Admission
from orchestrator.codec import (
    activity_to_wire,
    outage_to_wire,
    piece_to_wire,
    request_from_wire,
    result_to_wire,
)
from orchestrator.decoding.draft import DEFAULT_NUM_PREDRAFTS
from orchestrator.generation import Generation
from orchestrator.reporting.latency import CriticalPath
from orchestrator.reporting.timeline import Timeline
from orchestrator.sessions.link import Link
from orchestrator.sessions.pair import Pair
from outrider import __version__
from outrider.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    OutriderError,
    QueueFull,
    ServiceUnavailable,
)
from outrider.protocol.codec import model_info_to_wire
from outrider.protocol.messages import TextPiece
from outrider.protocol.stages import Stage
from outrider.v1 import generation_pb2, generation_pb2_grpc

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

# Left of the caller's deadline for the way back.
_DEADLINE_MARGIN_SECONDS = 0.05

Context = grpc.aio.ServicerContext[Any, Any]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The public API. Until `serve_pair` is called, valid requests fail with UNAVAILABLE.

    Args:
        max_queued: how many requests may wait for a slot of the target.
        max_new_tokens: how many tokens a request may ask for; None: only the context limits it.
        max_queue_seconds: how long a request may wait for a slot.
    """

    def __init__(
        self,
        max_queued: int = DEFAULT_MAX_QUEUED,
        max_new_tokens: int | None = None,
        max_queue_seconds: float = DEFAULT_MAX_QUEUE_SECONDS,
    ) -> None:
        self._pair: Pair | None = None
        self._missing = ServiceUnavailable("the services are not connected yet")
        self.max_new_tokens = max_new_tokens
        self.admission = Admission(0, max_queued, max_queue_seconds)
        self.activity = Activity()

    def wait(self, missing: ServiceUnavailable) -> None:
        """Until `serve_pair`: requests fail with `missing`, which says what is waited for."""
        self._missing = missing

    def serve_pair(self, pair: Pair) -> None:
        self._pair = pair
        self.admission.resize(pair.target_info.num_slots)
        pair.on_target = lambda target: self.admission.resize(target.num_slots)

    async def check(self) -> None:
        """Raises ServiceUnavailable if no text can be generated now."""
        self.pair.check()

    async def close(self) -> None:
        if self._pair is not None:
            await self._pair.close()

    def metrics(self) -> "Iterator[Metric]":
        """Metrics for Prometheus."""
        from orchestrator.metrics import generation_metrics, pair_metrics

        yield from pair_metrics(self._pair)
        yield from generation_metrics(self.activity, self.admission)

    @property
    def pair(self) -> Pair:
        if self._pair is None:
            raise self._missing.with_traceback(None)
        return self._pair

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> generation_pb2.GenerateResponse:
        generation = self._generation(request)
        async with aclosing(self._run(generation, context)) as steps:
            async for _ in steps:
                pass
        return result_to_wire(generation)

    async def GenerateStream(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> None:
        generation = self._generation(request)
        async with aclosing(self._run(generation, context)) as steps:
            async for pieces in steps:
                wire_pieces = map(piece_to_wire, pieces)
                await context.write(generation_pb2.GenerateStreamResponse(pieces=wire_pieces))
                generation.path.spend(Stage.DELIVER)
        result = result_to_wire(generation)
        await context.write(generation_pb2.GenerateStreamResponse(result=result))

    async def GetServerInfo(
        self, request: generation_pb2.GetServerInfoRequest, context: Context
    ) -> generation_pb2.GetServerInfoResponse:
        pair = self.pair
        target_info, draft_info = await pair.current_info()
        outage = pair.draft_outage
        return generation_pb2.GetServerInfoResponse(
            version=__version__,
            target=model_info_to_wire(target_info),
            draft=None if draft_info is None else model_info_to_wire(draft_info),
            default_num_predrafts=DEFAULT_NUM_PREDRAFTS,
            has_chat_template=pair.tokenizer.has_chat_template,
            activity=activity_to_wire(self.activity, self.admission.num_queued),
            draft_outage=None if outage is None else outage_to_wire(outage),
        )

    def _generation(self, message: generation_pb2.GenerateRequest) -> Generation:
        """Raises InvalidRequest."""
        path = CriticalPath(Timeline() if message.trace else None)
        return Generation(request_from_wire(message, self.max_new_tokens), path)

    async def _run(
        self, generation: Generation, context: Context
    ) -> AsyncGenerator[list[TextPiece], None]:
        pair = self.pair
        deadline = None
        if (remaining := context.time_remaining()) is not None:
            deadline = time.monotonic() + remaining - _DEADLINE_MARGIN_SECONDS
        with _explained(context, pair.target_link):
            steps = generation.run(pair, self.admission, self.activity, deadline)
            async with aclosing(steps):
                async for pieces in steps:
                    yield pieces


@contextmanager
def _explained(context: Context, target: Link) -> Iterator[None]:
    """A call that fails at the caller's deadline fails because of it, whatever gRPC says.

    Another that the target does not answer fails with where it is, and since when. A refusal by
    the orchestrator keeps its reason.
    """
    try:
        yield
    except (InvalidRequest, ContextTooLong, QueueFull, DeadlineUnreachable):
        raise
    except OutriderError as error:
        remaining = context.time_remaining()
        if remaining is not None and remaining <= _DEADLINE_MARGIN_SECONDS:
            raise DeadlineExceeded("the deadline passed") from error
        if (explained := target.explain(error)) is not error:
            raise explained from error
        raise
