"""DraftService on the wire."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator

import grpc

from draft_service.drafters import Drafter
from outrider.codec import proposal_to_wire, sampling_from_wire
from outrider.messages import GREEDY, ModelInfo
from outrider.model_service import ModelServicer, ServedModel
from outrider.v1 import draft_pb2, draft_pb2_grpc


class DraftServicer(ModelServicer, draft_pb2_grpc.DraftServiceServicer):
    """Answers UNAVAILABLE until `serve_model` is called."""

    drafter: Drafter | None = None

    def serve_model(self, model: ServedModel, drafter: Drafter) -> None:
        self.served = model
        self.drafter = drafter

    def model_info(self) -> ModelInfo:
        num_free_slots = self.available(self.drafter).num_free_slots
        return dataclasses.replace(super().model_info(), num_free_slots=num_free_slots)

    async def Propose(
        self,
        requests: AsyncIterator[draft_pb2.ProposeRequest],
        context: grpc.aio.ServicerContext[draft_pb2.ProposeRequest, draft_pb2.ProposeResponse],
    ) -> None:
        session = self.available(self.drafter).open_session()
        params = GREEDY
        vocab_size: int | None = None
        try:
            async for request in requests:
                arrived_ns = time.perf_counter_ns()
                if request.HasField("sampling"):
                    params = sampling_from_wire(request.sampling)
                vocab_size = request.vocab_size or vocab_size
                proposal = await session.propose(
                    request.context_length,
                    list(request.token_ids),
                    request.num_speculative_tokens,
                    params,
                    vocab_size,
                )
                total_ns = time.perf_counter_ns() - arrived_ns
                timings = dataclasses.replace(proposal.timings, total_ns=total_ns)
                await context.write(
                    proposal_to_wire(dataclasses.replace(proposal, timings=timings))
                )
        finally:
            session.close()
