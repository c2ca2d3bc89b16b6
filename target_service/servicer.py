"""TargetService on the wire."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import grpc

from outrider import telemetry
from outrider.codec import sampling_from_wire, verdict_to_wire
from outrider.messages import GREEDY, ModelInfo
from outrider.model_service import ModelServicer, ServedModel
from outrider.v1 import target_pb2, target_pb2_grpc
from target_service.verifier import Verifier

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


class TargetServicer(ModelServicer, target_pb2_grpc.TargetServiceServicer):
    """Answers UNAVAILABLE until `serve_model` is called."""

    verifier: Verifier | None = None

    def serve_model(self, model: ServedModel, verifier: Verifier) -> None:
        self.served = model
        self.verifier = verifier

    def metrics(self) -> Iterator[Metric]:
        """For Prometheus; nothing while the model loads."""
        from outrider.model_metrics import model_metrics

        return model_metrics(None if self.verifier is None else self.verifier.activity())

    def model_info(self) -> ModelInfo:
        num_free_slots = self.available(self.verifier).num_free_slots
        return dataclasses.replace(super().model_info(), num_free_slots=num_free_slots)

    async def Verify(
        self,
        requests: AsyncIterator[target_pb2.VerifyRequest],
        context: grpc.aio.ServicerContext[target_pb2.VerifyRequest, target_pb2.VerifyResponse],
    ) -> None:
        session = await self.available(self.verifier).open_session_in_turn()
        params = GREEDY
        try:
            async for request in requests:
                arrived_ns = time.perf_counter_ns()
                if request.assumes_verdict and session.is_stale(
                    request.context_length, request.token_ids
                ):
                    await context.write(target_pb2.VerifyResponse(is_stale=True))
                    continue
                if request.HasField("sampling"):
                    params = sampling_from_wire(request.sampling)
                with telemetry.span("verify", request.step_span_id) as span:
                    verdict = await session.verify(
                        request.context_length,
                        list(request.token_ids),
                        list(request.draft_token_ids),
                        params,
                    )
                    span.set(**dataclasses.asdict(verdict.timings))
                total_ns = time.perf_counter_ns() - arrived_ns
                timings = dataclasses.replace(verdict.timings, total_ns=total_ns)
                await context.write(verdict_to_wire(dataclasses.replace(verdict, timings=timings)))
        finally:
            session.close()
