"""Draft and target as the loop sees them: sessions over gRPC streams.

The loop hands over all committed tokens; only what the service lacks travels.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from orchestrator.mirror import Mirror
from orchestrator.timeline import DRAFT, TARGET, Timeline
from outrider import telemetry
from outrider.channel import from_rpc_error
from outrider.codec import (
    prepared_from_wire,
    proposal_from_wire,
    sampling_to_wire,
    timings_from_wire,
    verdict_from_wire,
)
from outrider.errors import NoFreeSlot, OutriderError, ServiceUnavailable
from outrider.messages import (
    ModelInfo,
    Preparation,
    Prepared,
    Proposal,
    SamplingParams,
    Verdict,
)
from outrider.v1 import draft_pb2, target_pb2

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
        now = asyncio.get_running_loop().time
        seconds, give_up = 0.002, now() + self._patience
        while True:
            try:
                return await self._exchange(request)
            except NoFreeSlot:
                if now() + seconds > give_up:
                    raise
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, _LONGEST_RETRY_SECONDS)
                self._call = self._open_call()

    async def _exchange(self, request: Any) -> Any:
        await self.send(request)
        return await self.receive()

    async def send(self, request: Any) -> None:
        """Raises OutriderError."""
        if span_id := telemetry.current_span_id():
            request.step_span_id = span_id
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.InvalidStateError:  # the stream had ended before
            raise await self._end_of_stream() from None

    async def receive(self) -> Any:
        """The next response. Raises OutriderError, at the stream's end too."""
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.InvalidStateError:
            response = grpc.aio.EOF
        if response is grpc.aio.EOF:
            raise await self._end_of_stream()
        if response is None:  # what gRPC makes of bytes that are no message
            raise OutriderError("the service sent what cannot be decoded")
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
        timeline: Timeline | None = None,
    ) -> None:
        self.max_context_length = draft.max_context_length
        self.num_prepared_tokens = 0
        self._stream = SessionStream(
            open_call,
            draft_pb2.ProposeRequest(
                sampling=sampling_to_wire(params), vocab_size=target.vocab_size
            ),
            _DRAFT_PATIENCE_SECONDS,
        )
        self._mirror = Mirror()
        self._vocab_size = draft.vocab_size
        self._context_length = 0
        # What the draft has prepared behind that context, by what it assumes.
        self._table: dict[tuple[int, ...], Prepared] = {}
        self._reader: asyncio.Task[None] | None = None
        self._failure: OutriderError | None = None
        # Who waits for the responses to come; nobody for those that only confirm.
        self._waiting: deque[asyncio.Future[Any] | None] = deque()
        self._timeline = timeline

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, preparation: Preparation
    ) -> Proposal:
        """At most so many tokens that may follow `tokens`; then prepares for their verdict.

        Raises OutriderError.
        """
        request = self._request(tokens, preparation)
        request.num_speculative_tokens = num_speculative_tokens
        self._note_sent("propose" if num_speculative_tokens else "read", request)
        proposal = proposal_from_wire(await self._exchange(request))
        self._mirror.hold(tokens, proposal.draft_token_ids, proposal.sequence_length)
        return proposal

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], preparation: Preparation
    ) -> None:
        """Tells that `draft` is being verified behind `tokens`, and prepares for that.

        Raises OutriderError.
        """
        request = self._request(tokens, preparation)
        request.draft_token_ids.extend(map(self._representable, draft))
        self._waiting.append(None)
        self._note_sent("follow", request)
        await self._send(request)
        self._mirror.hold(tokens, draft, len(tokens) + len(draft))

    def prepared(self, tokens: Sequence[int]) -> Prepared | None:
        """What the draft has prepared so far for the case that `tokens` are committed."""
        return self._table.get(tuple(tokens[self._context_length :]))

    def _request(self, tokens: Sequence[int], preparation: Preparation) -> draft_pb2.ProposeRequest:
        self._context_length = len(tokens)
        self._table = {}
        context_length, token_ids = self._mirror.difference(tokens)
        return draft_pb2.ProposeRequest(
            context_length=context_length,
            token_ids=[self._representable(token_id) for token_id in token_ids],
            num_branches=preparation.num_branches,
            num_prepared_tokens=preparation.num_tokens,
        )

    def _representable(self, token_id: int) -> int:
        """A draft with a smaller embedding reads a stand-in; its proposals are guesses anyway."""
        return token_id if token_id < self._vocab_size else 0

    async def _exchange(self, request: draft_pb2.ProposeRequest) -> draft_pb2.ProposeResponse:
        if self._reader is None:
            response = await self._stream.exchange(request)
            self._note_answered(response)
            self._reader = asyncio.create_task(self._read())
        else:
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append(answer)
            await self._send(request)
            response = await answer
            if response is None and self._failure is not None:
                raise self._failure
        assert isinstance(response, draft_pb2.ProposeResponse)
        return response

    async def _send(self, request: draft_pb2.ProposeRequest) -> None:
        if self._failure is not None:
            raise self._failure
        await self._stream.send(request)

    async def _read(self) -> None:
        """Files what arrives: prepared continuations in the table, responses to who waits."""
        try:
            while True:
                response = await self._stream.receive()
                if response.prepared:
                    grown = prepared_from_wire(response)
                    if self._timeline is not None:
                        self._timeline.prepared(response.timings.total_ns, grown)
                    self._add(grown)
                elif not self._waiting:
                    raise ServiceUnavailable("the draft answers what was not asked")
                else:
                    self._note_answered(response)
                    if (answer := self._waiting.popleft()) is not None and not answer.done():
                        answer.set_result(response)
        except OutriderError as error:
            self._failure = error
            # Not as their exception: who could not even send does not come for the answer.
            for answer in self._waiting:
                if answer is not None and not answer.done():
                    answer.set_result(None)

    def _note_sent(self, name: str, request: draft_pb2.ProposeRequest) -> None:
        if self._timeline is not None:
            self._timeline.sent(DRAFT, name, request.token_ids)

    def _note_answered(self, response: draft_pb2.ProposeResponse) -> None:
        if self._timeline is not None:
            timings = timings_from_wire(response.timings)
            self._timeline.answered(DRAFT, timings, response.draft_token_ids)

    def _add(self, grown: list[Prepared]) -> None:
        for prepared in grown:
            # One that was sent before the draft knew of the last verdict is stale.
            if prepared.context_length != self._context_length:
                continue
            before = self._table.get(prepared.assumed_token_ids)
            num_before = len(before.draft_token_ids) if before else 0
            self.num_prepared_tokens += len(prepared.draft_token_ids) - num_before
            self._table[prepared.assumed_token_ids] = prepared

    def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self._stream.close()


class TargetSession:
    """Verdicts on one sequence; `decoder.Verifier` over the network."""

    def __init__(
        self,
        open_call: Callable[[], Any],
        params: SamplingParams,
        timeline: Timeline | None = None,
    ) -> None:
        settings = target_pb2.VerifyRequest(sampling=sampling_to_wire(params))
        self._stream = SessionStream(open_call, settings, _TARGET_PATIENCE_SECONDS)
        self._mirror = Mirror()
        self._timeline = timeline

    async def verify(self, tokens: Sequence[int], draft_token_ids: Sequence[int]) -> Verdict:
        """The target's verdict on draft tokens that follow `tokens`. Raises OutriderError."""
        context_length, token_ids = self._mirror.difference(tokens)
        request = target_pb2.VerifyRequest(
            context_length=context_length, token_ids=token_ids, draft_token_ids=draft_token_ids
        )
        if self._timeline is not None:
            self._timeline.sent(TARGET, "verify" if draft_token_ids else "read", token_ids)
        verdict = verdict_from_wire(await self._stream.exchange(request))
        if self._timeline is not None:
            counts = {"accepted_tokens": verdict.num_accepted_tokens}
            self._timeline.answered(TARGET, verdict.timings, draft_token_ids, counts)
        self._mirror.hold(tokens, draft_token_ids, verdict.sequence_length)
        return verdict

    def close(self) -> None:
        self._stream.close()
