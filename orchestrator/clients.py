"""Draft and target as the loop sees them: sessions over gRPC streams.

The loop hands over all committed tokens; only what the service lacks travels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from orchestrator.mirror import Mirror
from outrider.channel import CHANNEL_OPTIONS, from_rpc_error
from outrider.codec import (
    model_info_from_wire,
    proposal_from_wire,
    sampling_to_wire,
    verdict_from_wire,
)
from outrider.errors import DeadlineExceeded, NoFreeSlot, OutriderError, ServiceUnavailable
from outrider.messages import ModelInfo, Proposal, SamplingParams, TokenizerFiles, Verdict
from outrider.tokenizer_files import from_bytes
from outrider.v1 import common_pb2, draft_pb2, draft_pb2_grpc, target_pb2, target_pb2_grpc

log = logging.getLogger(__name__)

# A slot that was given back is free after the pass that uses it. The target is worth
# waiting for; without the draft the loop goes on.
_TARGET_PATIENCE_SECONDS = 60.0
_DRAFT_PATIENCE_SECONDS = 0.05

_LONGEST_RETRY_SECONDS = 0.25


class SessionStream:
    """A bidirectional stream of which every request gets one response.

    Args:
        open_call: opens the stream.
        settings: what the first request carries on top.
        patience: seconds to wait for a slot if the service is full.
    """

    def __init__(self, open_call: Callable[[], Any], settings: Any, patience: float) -> None:
        self._open_call = open_call
        self._call = open_call()
        self._settings = settings
        self._patience = patience

    async def exchange(self, request: Any) -> Any:
        """Sends a request and awaits its response. Raises OutriderError."""
        if self._settings is not None:
            request.MergeFrom(self._settings)
            self._settings = None
            return await self._begin(request)
        return await self._exchange(request)

    async def _begin(self, request: Any) -> Any:
        """The first exchange; tries again for a while if the service is full."""
        seconds, give_up = 0.002, time.monotonic() + self._patience
        while True:
            try:
                return await self._exchange(request)
            except NoFreeSlot:
                if time.monotonic() + seconds > give_up:
                    raise
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, _LONGEST_RETRY_SECONDS)
                self._call = self._open_call()

    async def _exchange(self, request: Any) -> Any:
        try:
            await self._call.write(request)
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.InvalidStateError:  # the stream had ended before
            response = grpc.aio.EOF
        if response is grpc.aio.EOF:
            raise await self._end_of_stream()
        return response

    async def _end_of_stream(self) -> OutriderError:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return ServiceUnavailable("the service ended the session")
        return from_rpc_error(
            grpc.aio.AioRpcError(
                code,
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )
        )

    def close(self) -> None:
        """Ends the session; the service frees its slot."""
        self._call.cancel()


class DraftSession:
    """Proposals for one sequence; `decoder.Drafter` over the network."""

    def __init__(
        self,
        open_call: Callable[[], Any],
        params: SamplingParams,
        draft: ModelInfo,
        target: ModelInfo,
    ) -> None:
        self.max_context_length = draft.max_context_length
        self._stream = SessionStream(
            open_call,
            draft_pb2.ProposeRequest(
                sampling=sampling_to_wire(params), vocab_size=target.vocab_size
            ),
            _DRAFT_PATIENCE_SECONDS,
        )
        self._mirror = Mirror()
        self._vocab_size = draft.vocab_size

    async def propose(self, tokens: Sequence[int], num_speculative_tokens: int) -> Proposal:
        """At most so many tokens that may follow `tokens`. Raises OutriderError."""
        context_length, token_ids = self._mirror.difference(tokens)
        request = draft_pb2.ProposeRequest(
            context_length=context_length,
            token_ids=[self._representable(token_id) for token_id in token_ids],
            num_speculative_tokens=num_speculative_tokens,
        )
        proposal = proposal_from_wire(await self._stream.exchange(request))
        self._mirror.hold(tokens, proposal.draft_token_ids, proposal.sequence_length)
        return proposal

    def _representable(self, token_id: int) -> int:
        """A draft with a smaller embedding reads a stand-in; its proposals are guesses anyway."""
        return token_id if token_id < self._vocab_size else 0

    def close(self) -> None:
        self._stream.close()


class TargetSession:
    """Verdicts on one sequence; `decoder.Verifier` over the network."""

    def __init__(self, open_call: Callable[[], Any], params: SamplingParams) -> None:
        settings = target_pb2.VerifyRequest(sampling=sampling_to_wire(params))
        self._stream = SessionStream(open_call, settings, _TARGET_PATIENCE_SECONDS)
        self._mirror = Mirror()

    async def verify(self, tokens: Sequence[int], draft_token_ids: Sequence[int]) -> Verdict:
        """The target's verdict on draft tokens that follow `tokens`. Raises OutriderError."""
        context_length, token_ids = self._mirror.difference(tokens)
        request = target_pb2.VerifyRequest(
            context_length=context_length, token_ids=token_ids, draft_token_ids=draft_token_ids
        )
        verdict = verdict_from_wire(await self._stream.exchange(request))
        self._mirror.hold(tokens, draft_token_ids, verdict.sequence_length)
        return verdict

    def close(self) -> None:
        self._stream.close()


class ModelClient:
    """A channel to a draft or target service."""

    def __init__(self, address: str, stub_class: Any) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.stub = stub_class(self._channel)

    async def model_info(self, timeout: float) -> ModelInfo:
        """What is served now. Raises OutriderError."""
        request = common_pb2.GetModelInfoRequest()
        try:
            response = await self.stub.GetModelInfo(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return model_info_from_wire(response)

    async def wait_until_loaded(self, patience: float) -> ModelInfo:
        """Waits up to `patience` seconds for the service to serve. Raises OutriderError."""
        give_up = time.monotonic() + patience
        while True:
            try:
                return await self.model_info(timeout=5.0)
            except (ServiceUnavailable, DeadlineExceeded) as error:
                if time.monotonic() > give_up:
                    raise ServiceUnavailable(f"{self.address}: {error}") from error
                log.info("waiting for %s: %s", self.address, error)
            await asyncio.sleep(0.5)

    async def tokenizer_files(self) -> TokenizerFiles:
        """Raises OutriderError."""
        try:
            call = self.stub.GetTokenizer(common_pb2.GetTokenizerRequest())
            return from_bytes(b"".join([response.chunk async for response in call]))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def close(self) -> None:
        await self._channel.close()


class DraftClient(ModelClient):
    """Opens sessions on a draft service."""

    def __init__(self, address: str) -> None:
        super().__init__(address, draft_pb2_grpc.DraftServiceStub)

    def open_session(
        self, params: SamplingParams, draft: ModelInfo, target: ModelInfo, timeout: float | None
    ) -> DraftSession:
        return DraftSession(lambda: self.stub.Propose(timeout=timeout), params, draft, target)


class TargetClient(ModelClient):
    """Opens sessions on a target service."""

    def __init__(self, address: str) -> None:
        super().__init__(address, target_pb2_grpc.TargetServiceStub)

    def open_session(self, params: SamplingParams, timeout: float | None) -> TargetSession:
        return TargetSession(lambda: self.stub.Verify(timeout=timeout), params)
