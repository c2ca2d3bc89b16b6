"""TargetService over gRPC."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc

from outrider.errors import VocabularyMismatch
from outrider.observability import telemetry
from outrider.protocol.codec import (
    hidden_state_spec_from_wire,
    hidden_states_to_wire,
    sampling_from_wire,
    verify_result_to_wire,
)
from outrider.protocol.messages import GREEDY, VerifyResult
from outrider.serving.model_service import ModelServicer
from outrider.v1 import target_pb2, target_pb2_grpc
from target_service.verifier import Verifier

Context = grpc.aio.ServicerContext[target_pb2.VerifyRequest, target_pb2.VerifyResponse]


class TargetServicer(ModelServicer[Verifier], target_pb2_grpc.TargetServiceServicer):
    async def Verify(
        self,
        requests: AsyncIterator[target_pb2.VerifyRequest],
        context: Context,
    ) -> None:
        worker = self.available(self.worker)
        requests = aiter(requests)
        if (first := await anext(requests, None)) is None:
            return
        arrived_ns = time.perf_counter_ns()
        session = await worker.open_session_in_order(first.max_length)
        params = GREEDY
        run_ahead: asyncio.Task[None] | None = None
        try:
            while (request := first or await _next_request(requests, run_ahead)) is not None:
                if first is None:
                    arrived_ns = time.perf_counter_ns()
                first = None
                if run_ahead is not None:
                    session.stop()
                    await asyncio.shield(run_ahead)
                    run_ahead = None
                if request.assumes_result and session.is_stale(
                    request.context_length, request.token_ids
                ):
                    await context.write(target_pb2.VerifyResponse(stale=target_pb2.StaleRequest()))
                    continue
                self._check_vocabulary(request.vocabulary_fingerprint)
                if request.HasField("sampling"):
                    params = sampling_from_wire(request.sampling)
                if request.HasField("hidden_states"):
                    session.give_hidden_states(hidden_state_spec_from_wire(request.hidden_states))
                with telemetry.span("verify", request.step_span_id) as span:
                    result = await session.verify(
                        request.context_length,
                        list(request.token_ids),
                        list(request.draft_token_ids),
                        params,
                        request.num_run_ahead_tokens,
                    )
                    span.set_fields(result.timings)
                await _write(context, result, arrived_ns)
                if request.num_run_ahead_tokens:
                    run_ahead = asyncio.create_task(_write_run_ahead(context, session.run_ahead()))
            if run_ahead is not None:
                await asyncio.shield(run_ahead)  # all that was asked for
        finally:
            session.close()

    def _check_vocabulary(self, fingerprint: str) -> None:
        """Raises VocabularyMismatch; an empty one is not compared."""
        served = self.available(self.served).info
        if fingerprint not in ("", served.vocabulary_fingerprint):
            raise VocabularyMismatch(
                "the target serves another vocabulary than it did when the orchestrator started; "
                "restart the orchestrator"
            )


async def _next_request(
    requests: AsyncIterator[target_pb2.VerifyRequest], run_ahead: asyncio.Task[None] | None
) -> target_pb2.VerifyRequest | None:
    """The next request; None at the end of the stream. Raises what `run_ahead` raises meanwhile."""
    if run_ahead is None:
        return await anext(requests, None)
    request = asyncio.ensure_future(anext(requests, None))
    try:
        await asyncio.wait((request, run_ahead), return_when=asyncio.FIRST_COMPLETED)
        if not request.done():
            await run_ahead
        return await request
    finally:
        request.cancel()


async def _write_run_ahead(context: Context, results: AsyncIterator[VerifyResult]) -> None:
    """Writes run-ahead results, each timed from the end of the previous answer.

    It is not cancelled, but ends with the results or with the stream: gRPC would leak a message
    that is being written.
    """
    began_ns = time.perf_counter_ns()
    with suppress(grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError):
        async for result in results:
            await _write(context, result, began_ns)
            began_ns = time.perf_counter_ns()


async def _write(context: Context, result: VerifyResult, began_ns: int) -> None:
    """Writes a result, after those of its hidden states for which it has no room."""
    if (states := result.hidden_states) is not None:
        *surplus, last = states.pieces()
        for piece in surplus:
            message = target_pb2.VerifyResponse(hidden_states=hidden_states_to_wire(piece))
            await context.write(message)
        result = dataclasses.replace(result, hidden_states=last)
    await context.write(verify_result_to_wire(result, time.perf_counter_ns() - began_ns))
