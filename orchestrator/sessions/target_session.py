"""The target as the loop sees it: a session over a gRPC stream.

The loop hands over all committed tokens; only what the service lacks travels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.decoding.interfaces import Ahead, Foresight
from orchestrator.reporting.timeline import TARGET, Timeline
from orchestrator.sessions.sequence_sync import SequenceSync
from orchestrator.sessions.stream import SessionStream
from outrider.errors import OutriderError
from outrider.protocol.codec import sampling_to_wire, verify_result_from_wire
from outrider.protocol.messages import SamplingParams, Timings, VerifyResult
from outrider.v1 import target_pb2

# A slot that was given back is free after the pass that uses it; the target is worth
# waiting for.
_PATIENCE_SECONDS = 60.0


class TargetSession:
    """VerifyResults on one sequence; `partners.Verifier` over the network.

    Args:
        vocabulary_fingerprint: of the vocabulary that its tokens are of; empty: not checked.
    """

    def __init__(
        self,
        open_call: Callable[[], Any],
        params: SamplingParams,
        timeline: Timeline | None = None,
        vocabulary_fingerprint: str = "",
    ) -> None:
        self.ahead: Ahead | None = None
        self._timeline = timeline
        settings = target_pb2.VerifyRequest(
            sampling=sampling_to_wire(params), vocabulary_fingerprint=vocabulary_fingerprint
        )
        self._stream = SessionStream(open_call, settings, _PATIENCE_SECONDS, "the target")
        self._sync = SequenceSync()
        self._num_more = 0  # results to come without a request

    num_threads = 0
    """CPU threads of the target's last pass; 0 if unknown."""

    @property
    def goes_on(self) -> bool:
        return self._num_more > 0

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        foresight: Foresight | None = None,
        num_run_ahead_tokens: int = 0,
    ) -> VerifyResult:
        """The target's result on draft tokens that follow `tokens`. Raises OutriderError."""
        ahead, self.ahead = self.ahead, None
        if self.goes_on and not draft_token_ids and foresight is None:
            self._num_more -= 1
            self._note_sent("goes on", tokens[-1:])
            response = await self._stream.receive()
            _check(response.run_ahead.context_length == len(tokens))
            result = verify_result_from_wire(response.run_ahead, is_run_ahead=True)
        elif ahead is None and foresight is None and not self.goes_on:
            request = self._request(tokens, draft_token_ids, num_run_ahead_tokens)
            response = await self._stream.exchange(request)
            _check(response.HasField("result"))
            result = verify_result_from_wire(response.result)
            self._num_more = num_run_ahead_tokens
        else:
            is_stale = ahead is not None and ahead.tokens != tokens
            if ahead is None or is_stale:
                await self._stream.send(
                    self._request(tokens, draft_token_ids, num_run_ahead_tokens)
                )
            result = await self._receive(is_stale, foresight)
            self._num_more = num_run_ahead_tokens
        self.num_threads = result.timings.num_threads
        if self._timeline is not None:
            counts = {"accepted_tokens": result.num_accepted_tokens}
            self._timeline.answered(TARGET, result.timings, draft_token_ids, counts)
        self._sync.hold(tokens, draft_token_ids, result.sequence_length)
        return result

    def _request(
        self, tokens: Sequence[int], draft_token_ids: Sequence[int], num_run_ahead_tokens: int
    ) -> target_pb2.VerifyRequest:
        context_length, token_ids = self._sync.difference(tokens)
        self._note_sent("verify" if draft_token_ids else "read", token_ids)
        return target_pb2.VerifyRequest(
            context_length=context_length,
            token_ids=token_ids,
            draft_token_ids=draft_token_ids,
            num_run_ahead_tokens=num_run_ahead_tokens,
        )

    async def _receive(self, after_stale: bool, foresight: Foresight | None) -> VerifyResult:
        if foresight is None:
            return await self._next_result(after_stale)
        result = asyncio.create_task(self._next_result(after_stale))
        ahead = asyncio.ensure_future(foresight())
        try:
            await asyncio.wait((result, ahead), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                await self._send_ahead(ahead.result())
            return await result
        finally:
            result.cancel()
            ahead.cancel()
            await asyncio.gather(result, ahead, return_exceptions=True)

    async def _send_ahead(self, ahead: Ahead) -> None:
        self.ahead = ahead
        self._note_sent("verify, sent ahead", ahead.tokens[-1:])
        await self._stream.send(
            target_pb2.VerifyRequest(
                context_length=len(ahead.tokens) - 1,
                token_ids=ahead.tokens[-1:],
                draft_token_ids=ahead.draft_token_ids,
                assumes_result=True,
            )
        )

    def _note_sent(self, name: str, token_ids: Sequence[int]) -> None:
        if self._timeline is not None:
            self._timeline.sent(TARGET, name, token_ids)

    async def _next_result(self, after_stale: bool) -> VerifyResult:
        """Takes the answer to what was sent ahead in vain off the stream first."""
        if after_stale:
            _check((await self._next_answer()).HasField("stale"))
            if self._timeline is not None:
                self._timeline.answered(TARGET, Timings(), ())
        response = await self._next_answer()
        _check(response.HasField("result"))
        return verify_result_from_wire(response.result)

    async def _next_answer(self) -> Any:
        """The answer to a request. Where the target went on until then was in vain."""
        while (response := await self._stream.receive()).HasField("run_ahead"):
            _check(self._num_more > 0)
            self._num_more -= 1
        return response

    def close(self) -> None:
        self._stream.close()


def _check(agrees: bool) -> None:
    if not agrees:
        raise OutriderError("the target and the loop disagree on what is committed")
