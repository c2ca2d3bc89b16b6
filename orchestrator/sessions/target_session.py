"""The target, as the loop sees it: a session over a gRPC stream.

The loop passes all committed tokens; only the difference to what the service holds is sent.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.decoding.interfaces import (
    Lookahead,
    PipelinedRequest,
    Pipelining,
    RunningAhead,
)
from orchestrator.reporting.timeline import Timeline
from orchestrator.sessions.hidden_state_window import HiddenStateWindow
from orchestrator.sessions.sequence_sync import SequenceSync
from orchestrator.sessions.stream import SessionStream
from outrider.errors import OutriderError
from outrider.protocol.codec import (
    hidden_state_spec_to_wire,
    hidden_states_from_wire,
    sampling_to_wire,
    verify_result_from_wire,
)
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import SamplingParams, Timings, VerifyResult
from outrider.protocol.stages import Track
from outrider.v1 import target_pb2

# How long to retry while all slots are taken: one that was given back is free after the forward
# pass that uses it, and the target is worth waiting for.
_SLOT_WAIT_SECONDS = 60.0


class TargetSession:
    """Verify results for one sequence; `interfaces.Verifier` over gRPC.

    Args:
        vocabulary_fingerprint: of the tokens' vocabulary, which the target checks; empty: it does
            not.
        window: receives the hidden states for a feature draft.
        max_length: of the sequence, which the target reserves; 0: as many tokens as it can.
    """

    def __init__(
        self,
        open_call: Callable[[], Any],
        params: SamplingParams,
        timeline: Timeline | None = None,
        vocabulary_fingerprint: str = "",
        window: HiddenStateWindow | None = None,
        max_length: int = 0,
    ) -> None:
        self.pipelined: PipelinedRequest | None = None
        self._timeline = timeline
        self._window = window
        settings = target_pb2.VerifyRequest(
            sampling=sampling_to_wire(params),
            vocabulary_fingerprint=vocabulary_fingerprint,
            hidden_states=hidden_state_spec_to_wire(None if window is None else window.spec),
            max_length=max_length,
        )
        self._stream = SessionStream(open_call, settings, _SLOT_WAIT_SECONDS, "the target")
        self._sync = SequenceSync()
        self._num_run_ahead = 0  # results to come that need no request

    @property
    def is_running_ahead(self) -> bool:
        return self._num_run_ahead > 0

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        lookahead: Lookahead | None = None,
    ) -> VerifyResult:
        """Verifies draft tokens after `tokens`, see `Verifier`. Raises OutriderError."""
        pipelined, self.pipelined = self.pipelined, None
        num_run_ahead = lookahead.num_tokens if isinstance(lookahead, RunningAhead) else 0
        is_pipelining = isinstance(lookahead, Pipelining)
        if self.is_running_ahead and not draft_token_ids and not is_pipelining:
            result = await self._next_run_ahead(tokens)
        elif pipelined is None and not is_pipelining and not self.is_running_ahead:
            request = self._request(tokens, draft_token_ids, num_run_ahead)
            response = await self._stream.exchange(request)
            result = self._result_in(await self._without_states(response))
            self._num_run_ahead = num_run_ahead
        else:
            is_sent = pipelined is not None and pipelined.tokens == tokens
            if not is_sent:
                await self._stream.send(self._request(tokens, draft_token_ids, num_run_ahead))
            result = await self._receive(pipelined is not None and not is_sent, lookahead)
            self._num_run_ahead = 0 if is_sent else num_run_ahead
        if self._timeline is not None:
            counts = {"accepted_tokens": result.num_accepted_tokens}
            self._timeline.answered(Track.TARGET, result.timings, draft_token_ids, counts)
        self._sync.hold(tokens, draft_token_ids, result.sequence_length)
        return result

    def _request(
        self, tokens: Sequence[int], draft_token_ids: Sequence[int], num_run_ahead: int
    ) -> target_pb2.VerifyRequest:
        context_length, token_ids = self._sync.difference(tokens)
        self._note_sent("verify" if draft_token_ids else "read", token_ids)
        return target_pb2.VerifyRequest(
            context_length=context_length,
            token_ids=token_ids,
            draft_token_ids=draft_token_ids,
            num_run_ahead_tokens=num_run_ahead,
        )

    async def _next_run_ahead(self, tokens: Sequence[int]) -> VerifyResult:
        self._num_run_ahead -= 1
        self._note_sent("run ahead", tokens[-1:])
        message = (await self._stream.receive()).run_ahead
        _check(message.context_length == len(tokens))
        return self._read(message, is_run_ahead=True)

    async def _receive(self, after_stale: bool, lookahead: Lookahead | None) -> VerifyResult:
        """The next result. With pipelining, sends the next request while it waits."""
        if not isinstance(lookahead, Pipelining):
            return await self._next_result(after_stale)
        result = asyncio.create_task(self._next_result(after_stale))
        request = asyncio.ensure_future(lookahead.next_request())
        try:
            await asyncio.wait((result, request), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                await self._send_pipelined(request.result())
            return await result
        finally:
            result.cancel()
            request.cancel()
            await asyncio.gather(result, request, return_exceptions=True)

    async def _send_pipelined(self, request: PipelinedRequest) -> None:
        self.pipelined = request
        self._note_sent("verify, pipelined", request.tokens[-1:])
        await self._stream.send(
            target_pb2.VerifyRequest(
                context_length=len(request.tokens) - 1,
                token_ids=request.tokens[-1:],
                draft_token_ids=request.draft.token_ids,
                assumes_result=True,
            )
        )

    def _note_sent(self, name: str, token_ids: Sequence[int]) -> None:
        if self._timeline is not None:
            self._timeline.sent(Track.TARGET, name, token_ids)

    async def _next_result(self, after_stale: bool) -> VerifyResult:
        """The next result; first consumes the answer to a stale request."""
        if after_stale:
            _check((await self._next_answer()).HasField("stale"))
            if self._timeline is not None:
                self._timeline.answered(Track.TARGET, Timings(), ())
        return self._result_in(await self._next_answer())

    async def _next_answer(self) -> Any:
        """The answer to a request; discards run-ahead results that precede it."""
        while (response := await self._stream.receive()).HasField("run_ahead"):
            _check(self._num_run_ahead > 0)
            self._num_run_ahead -= 1
        return await self._without_states(response)

    async def _without_states(self, response: Any) -> Any:
        """The response, or the one that follows hidden states."""
        while response.HasField("hidden_states"):
            self._keep(hidden_states_from_wire(response.hidden_states))
            response = await self._stream.receive()
        return response

    def _result_in(self, response: target_pb2.VerifyResponse) -> VerifyResult:
        _check(response.HasField("result"))
        return self._read(response.result)

    def _read(self, message: target_pb2.VerifyResult, is_run_ahead: bool = False) -> VerifyResult:
        result = verify_result_from_wire(message, is_run_ahead)
        if result.hidden_states is not None:
            self._keep(result.hidden_states)
        return result

    def _keep(self, states: HiddenStates) -> None:
        if self._window is not None:
            self._window.add(states)

    def close(self) -> None:
        self._stream.close()


def _check(agrees: bool) -> None:
    if not agrees:
        raise OutriderError("the target and the loop disagree on what is committed")
