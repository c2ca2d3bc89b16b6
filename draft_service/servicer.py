"""DraftService over gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import grpc

from draft_service.drafters.model import ModelDrafter
from outrider.observability import telemetry
from outrider.protocol.codec import (
    hidden_states_from_wire,
    predraft_plan_from_wire,
    predrafts_to_wire,
    proposal_to_wire,
    sampling_from_wire,
)
from outrider.protocol.messages import GREEDY, Predraft
from outrider.serving.model_service import ModelServicer
from outrider.v1 import draft_pb2, draft_pb2_grpc

Context = grpc.aio.ServicerContext[draft_pb2.ProposeRequest, draft_pb2.ProposeResponse]


class DraftServicer(ModelServicer[ModelDrafter], draft_pb2_grpc.DraftServiceServicer):
    async def Propose(
        self,
        requests: AsyncIterator[draft_pb2.ProposeRequest],
        context: Context,
    ) -> None:
        worker = self.available(self.worker)
        requests = aiter(requests)
        request = await anext(requests, None)
        if request is None:
            return
        session = worker.open_session(request.max_length)
        responses = Responses(context)
        params = GREEDY
        vocab_size: int | None = None
        try:
            while request is not None:
                arrived_ns = time.perf_counter_ns()
                if request.HasField("sampling"):
                    params = sampling_from_wire(request.sampling)
                plan = predraft_plan_from_wire(request)
                vocab_size = request.vocab_size or vocab_size
                with telemetry.span("propose", request.step_span_id) as span:
                    proposal = await session.propose(
                        request.context_length,
                        [*request.token_ids, *request.draft_token_ids],
                        request.num_speculative_tokens,
                        params,
                        vocab_size,
                        hidden_states_from_wire(request.hidden_states)
                        if request.HasField("hidden_states")
                        else None,
                    )
                    span.set_fields(proposal.timings)
                length = request.context_length + len(request.token_ids)
                total_ns = time.perf_counter_ns() - arrived_ns
                await responses.write(proposal_to_wire(proposal, length, total_ns))
                session.predraft(
                    len(request.draft_token_ids) + len(proposal.draft_token_ids),
                    plan,
                    partial(responses.write_predrafts, arrived_ns),
                )
                request = await anext(requests, None)
        finally:
            session.close()
            responses.close()


class Responses:
    """Writes both proposals and predrafts to a stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._turn = asyncio.Lock()
        self._writing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def write(self, response: draft_pb2.ProposeResponse) -> None:
        async with self._turn:
            await self._context.write(response)

    def write_predrafts(self, arrived_ns: int, predrafts: list[Predraft]) -> None:
        """Queues predrafts for writing, without waiting. Drops them if the stream ends.

        Args:
            arrived_ns: when the request that they belong to arrived.
        """
        if self._is_closed:
            return
        elapsed_ns = time.perf_counter_ns() - arrived_ns
        task = asyncio.create_task(self._write_if_open(predrafts_to_wire(predrafts, elapsed_ns)))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write_if_open(self, response: draft_pb2.ProposeResponse) -> None:
        with suppress(grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError):
            async with self._turn:
                if not self._is_closed:
                    await self._context.write(response)

    def close(self) -> None:
        """Drops what is queued.

        A write in progress is left to end with its stream: gRPC leaks a write that is cancelled.
        """
        self._is_closed = True
